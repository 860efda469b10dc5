"""Run llama.cpp's own HTTP server, the C++ one, from the prebuilt `xllamacpp` wheel.

    python server.py -m tiny.gguf --alias tiny        # prints "listening on http://127.0.0.1:PORT"

Routes, error bodies and wire format are those of `llama-server`; only the options are read here. It ends on
SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run llama.cpp's HTTP server.")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--api-key", action="append", default=[])
    parser.add_argument("--alias", default="")
    parser.add_argument("-np", "--parallel", type=int, default=4)
    parser.add_argument("-c", "--ctx-size", type=int, default=8192, help="shared by all slots")
    parser.add_argument("-n", "--predict", type=int, default=-1, help="tokens of an answer, unless asked for")
    parser.add_argument("--context-shift", action="store_true", help="go on where the context is full")
    parser.add_argument("--embeddings", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.hostnames = [args.host]
    params.port = args.port
    params.api_keys = args.api_key
    if args.alias:
        params.model_alias = {args.alias}
    params.n_parallel = args.parallel
    params.n_ctx = args.ctx_size
    params.n_predict = args.predict
    params.ctx_shift = args.context_shift
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 64  # with fewer, a burst of new connections can stall for 5 s behind idle ones
    params.n_gpu_layers = 0
    params.cache_ram_mib = 0
    params.endpoint_slots = True
    params.endpoint_metrics = True
    params.embedding = args.embeddings
    if args.embeddings:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # Blocked before the server starts its threads, so that sigwait below gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
