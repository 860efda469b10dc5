"""Read off a form which model it asks for, and whether it wants a stream.

Bytes in, values out, as for JSON. Files, and all else that such a form is full of, are skipped and never
copied; parts, and what is kept of one, are bounded.
"""

from collections.abc import Callable
from email.message import Message
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from llmgateway.api.endpoints import Body
from llmgateway.api.peek import STEP_BYTES, Peek
from llmgateway.api.unreadable import NoModel, bad, check_model
from llmgateway.errors import GatewayError

Span = tuple[int, int]
"""Where a value begins in a body, and where it ends, in bytes."""

_MOST_PARTS: Final = 1_000
_FORM_FIELD_BYTES: Final = 4_096  # of the fields we read; files and prompts are skipped


class _FormFields:
    """Collects the small fields named `model` and `stream` from a multipart body, and skips the rest."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.at_file = self.ended = False
        self.before = 0
        """How many bytes came before those that are being looked at."""
        self.model_at: Span | None = None
        self._parts = 0
        self._header = self._value = b""
        self._name: str | None = None

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise bad(f"The form has more than {_MOST_PARTS} parts.")
        self._name = None
        self._header = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        wanted = b"model" in self._value or b"stream" in self._value
        is_disposition = self._header.lower() == b"content-disposition"
        if is_disposition and b"filename" in self._value:
            self.at_file = True
        if wanted and is_disposition:
            name = _parameter(self._value.decode("utf-8", "replace"), "name")
            self._name = name if name in ("model", "stream") else None
            if self._name:
                self.values[self._name] = b""
            if self._name == "model":
                self.model_at = None
        self._header = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "model":
            at = self.before + start if self.model_at is None else self.model_at[0]
            self.model_at = at, self.before + end
        if self._name and len(self.values[self._name]) < _FORM_FIELD_BYTES:
            self.values[self._name] += data[start : min(end, start + _FORM_FIELD_BYTES)]

    def _end(self) -> None:
        self.ended = True


class _Place(_FormFields):
    """Finds where the value of the last field `model` stands, in a form that is written in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.at: Span | None = None
        self._begun: Span | None = None

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {**super().callbacks(), "on_part_end": self._part_end}

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "model":
            self._begun = (start, end)

    def _part_end(self) -> None:
        if self._begun is not None:
            self.at, self._begun = self._begun, None


def _parameter(header: str, name: str) -> str | None:
    message = Message()
    message["content-disposition"] = header
    value = message.get_param(name, header="content-disposition")
    return value if isinstance(value, str) else None


class FormLook:
    """A look at a form that comes piece by piece."""

    def __init__(self, content_type: bytes) -> None:
        """Begin. Raises GatewayError (400) if it is no form."""
        self._fields = _FormFields()
        try:
            self._parser = MultipartParser(_boundary(content_type), self._fields.callbacks())  # type: ignore[arg-type]
        except FormParserError:
            raise _malformed() from None

    def add(self, piece: bytes) -> None:
        """Look at the next piece. Raises GatewayError (400)."""
        try:
            self._parser.write(piece)
        except FormParserError:
            raise _malformed() from None
        self._fields.before += len(piece)

    @property
    def model_at(self) -> Span | None:
        """Where the value of the last field `model` stands, if there is one."""
        return self._fields.model_at

    @property
    def tells_enough(self) -> bool:
        """True once a file has begun, and the model stood before it."""
        return self._fields.at_file and bool(self._fields.values.get("model"))

    def peek(self, default: str = "") -> Peek:
        """Tell what it has said so far, with a model for one that has none. Raises GatewayError (400)."""
        values = self._fields.values
        if "model" not in values and not default:
            raise NoModel("The form has no field 'model'.")
        try:
            model = values["model"].decode() if "model" in values else default
        except UnicodeDecodeError:
            raise bad("The field 'model' is not valid UTF-8.") from None
        if not model:
            raise bad("The field 'model' must not be empty.")
        check_model(model)
        return Peek(model, values.get("stream", b"").strip().lower() == b"true")

    def check_end(self) -> None:
        """Refuse a form that is not whole. Raises GatewayError (400)."""
        if not self._fields.ended:
            raise bad("The multipart body ends before its last boundary.")


def peek_multipart(body: Body, content_type: bytes) -> Peek:
    """Read a multipart/form-data body; files in it are skipped, not copied. Raises GatewayError (400)."""
    look = FormLook(content_type)
    view = memoryview(body)
    for start in range(0, len(body), STEP_BYTES):
        look.add(bytes(view[start : start + STEP_BYTES]))
    look.check_end()
    return look.peek()


def _boundary(content_type: bytes) -> bytes:
    """Give what stands between the parts, by the Content-Type. Raises GatewayError (400)."""
    header = Message()
    header["content-type"] = content_type.decode("latin-1")
    try:
        boundary = header.get_boundary()
    except ValueError:  # it may name an encoding of its own, of which not all can be used
        boundary = None
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise bad("This endpoint takes multipart/form-data with a boundary.")
    try:
        return boundary.encode("latin-1")
    except UnicodeEncodeError:
        raise _malformed() from None


def _malformed() -> GatewayError:
    return bad("The request body is not valid multipart/form-data.")


def model_in_form(body: Body, content_type: bytes) -> Span:
    """Find the value of the last field `model`; what follows its part may be missing.

    Raises ValueError if there is none.
    """
    place = _Place()
    MultipartParser(_boundary(content_type), place.callbacks()).write(bytes(body))  # type: ignore[arg-type]
    if place.at is None:
        raise ValueError("the form has no field 'model'")
    return place.at


def form_with_model(body: Body, content_type: bytes, model: str) -> bytes:
    """Put a part with a model in front of a form that names none; every byte that was there stays."""
    start = first_part(body, content_type)
    before, behind = around_model(content_type)
    return b"".join((body[:start], before, model.encode(), behind, body[start:]))


def first_part(beginning: Body, content_type: bytes) -> int:
    """Give the place of a form's first part."""
    return beginning.index(b"--" + _boundary(content_type))


def around_model(content_type: bytes) -> tuple[bytes, bytes]:
    """Give what stands around a model in a part of its own."""
    named = b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    return b"--" + _boundary(content_type) + named, b"\r\n"
