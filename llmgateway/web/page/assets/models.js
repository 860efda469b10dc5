// The models that the try-it box offers, and which of them it chooses by itself.

import { el, setAttribute, setText } from "./dom.js";

// No list of models says what they are for; their names mostly do.
const NO_CHAT = /embed|rerank|retriev|\b(bge|gte|e5|minilm|colbert|clip|siglip)\b|whisper|\b(tts|asr|stt)\b|kokoro|piper|speech|diffusion|sdxl|\bflux|moderation/i;

/** @returns {{id: string, note: string, real?: boolean, sees: boolean}[]} those that can answer now, and other names for them */
export function modelsOf(providers, aliases = []) {
  const able = providers.filter(({ state }) => state === "online" || state === "warming");
  const models = new Map();
  for (const { id, loaded, sees } of able.flatMap((provider) => provider.models)) {
    const before = models.get(id);
    const note = before?.note || (loaded === true ? "loaded" : "");
    // Where one provider of it takes images, or does not tell, they may be sent.
    models.set(id, { id, note, real: true, sees: before ? before.sees !== false || sees !== false : sees !== false });
  }
  const known = aliases.filter(({ alias_of: of }) => models.has(of));
  const others = known.map(({ id, alias_of: of }) => ({ id, note: `stands for ${of}`, sees: models.get(of).sees }));
  const options = [...models.values(), ...others];
  return options.sort((a, b) => a.id.localeCompare(b.id));
}

/** Choose what was wanted, else one that chats, best one that is in memory. @returns {string} */
export function choice(options, wanted) {
  if (options.some(({ id }) => id === wanted)) return wanted;
  const able = options.filter(({ id, real }) => real && !NO_CHAT.test(id));
  const best = able.find(({ note }) => note) ?? able[0] ?? options[0];
  return best?.id ?? "";
}

export function modelOption() {
  const node = el("option");
  const update = ({ id, note }) => {
    setAttribute(node, "value", id);
    setText(node, note ? `${id} (${note})` : id);
  };
  return { node, update };
}
