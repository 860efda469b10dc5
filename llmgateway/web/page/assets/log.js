// The log's last lines, for admins; they are asked for while they are looked at.

import { logLines } from "./api.js";
import { byId, setText, show } from "./dom.js";

const PERIOD_MS = 2000;
const NEAR_END_PX = 20;

/** @returns {(snapshot: any) => void} */
export function logTail() {
  const box = byId("log-box");
  const text = byId("log-lines");
  const refresh = async () => {
    if (!box.open || document.hidden) return;
    const lines = await logLines().catch((error) => [error.message]);
    const following = text.scrollHeight - text.scrollTop - text.clientHeight < NEAR_END_PX;
    setText(text, lines.join("\n") || "Nothing has been logged yet.");
    if (following) text.scrollTop = text.scrollHeight;
  };
  box.addEventListener("toggle", refresh);
  setInterval(refresh, PERIOD_MS);
  return ({ viewer }) => {
    show(byId("log"), viewer.admin);
    show(byId("jump-log"), viewer.admin);
  };
}
