// Numbers and times as people read them. `null` and missing values are a dash.

export const DASH = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minuteFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

const missing = (value) => value === null || value === undefined;

/** 1234 -> "1,234" */
export const count = (value) => (missing(value) ? DASH : whole.format(value));

/** 123456 -> "123K" */
export const short = (value) => (missing(value) ? DASH : value < 10_000 ? whole.format(value) : compact.format(value));

/** Tokens per second: "0", "4.2", "31" */
export function rate(value) {
  if (missing(value)) return DASH;
  return value >= 9.95 || value < 0.05 ? whole.format(value) : value.toFixed(1);
}

/** A context length: 4096 -> "4k", 131072 -> "128k" */
export function context(tokens) {
  if (tokens < 1000) return String(tokens);
  const unit = tokens % 1024 === 0 ? 1024 : 1000;
  return `${whole.format(tokens / unit)}k`;
}

/** Seconds as the two largest units that matter: "0.4 s", "12 s", "3 m 05 s", "2 h 14 m", "3 d 4 h" */
export function duration(seconds) {
  if (missing(seconds)) return DASH;
  const s = Math.max(0, seconds);
  if (s < 9.95) return `${s.toFixed(1)} s`;
  return longDuration(Math.round(s));
}

/** As `duration`, for clocks that tick: whole seconds only. */
export const age = (seconds) => longDuration(Math.max(0, Math.floor(seconds)));

function longDuration(s) {
  const two = (value) => String(value).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${two(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} m`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** Milliseconds: "0", "12 ms", "1.4 s" */
export function milliseconds(ms) {
  if (missing(ms)) return DASH;
  if (ms < 0.5) return "0";
  return ms < 1000 ? `${Math.round(ms)} ms` : duration(ms / 1000);
}

/** @param {number} seconds since the epoch */
export const clock = (seconds) => clockFormat.format(new Date(seconds * 1000));

/** @param {number} seconds since the epoch */
export const minute = (seconds) => minuteFormat.format(new Date(seconds * 1000));

/** Time of day, with the day if it is not today's. */
export function moment(seconds, now = Date.now() / 1000) {
  const sameDay = new Date(seconds * 1000).toDateString() === new Date(now * 1000).toDateString();
  return sameDay ? clock(seconds) : `${dayFormat.format(new Date(seconds * 1000))}, ${minute(seconds)}`;
}

/** "1 request", "2 requests" */
export const plural = (number, noun) => `${whole.format(number)} ${noun}${number === 1 ? "" : "s"}`;
