// What the try-it box remembers: the conversation for this tab, the model for this browser; for one user at a time.

const TAB = `llmgateway.try ${location.pathname}`;
const BROWSER = `llmgateway.model ${location.pathname}`;
const MOST_CHARS = 1_000_000;

/** @returns {any} what `keep` was given, if it was by the same user */
export const conversation = (user) => read(() => sessionStorage, TAB, user);

/** @returns {string} the model that the user chose last, in any tab */
export const lastModel = (user) => read(() => localStorage, BROWSER, user)?.model ?? "";

/** @param {string} user @param {{turns: any[], [name: string]: any}} told */
export function keep(user, told) {
  let { turns } = told;
  let text = JSON.stringify({ ...told, user });
  while (text.length > MOST_CHARS && turns.length) {
    turns = turns.slice(1);
    text = JSON.stringify({ ...told, turns, user });
  }
  attempt(() => sessionStorage.setItem(TAB, text));
}

export const keepModel = (user, model) => attempt(() => localStorage.setItem(BROWSER, JSON.stringify({ user, model })));

/** Nothing that one user wrote may be left for the next. */
export function forget() {
  attempt(() => sessionStorage.removeItem(TAB));
  attempt(() => localStorage.removeItem(BROWSER));
}

function read(storage, key, user) {
  const told = attempt(() => JSON.parse(storage().getItem(key) ?? "null"));
  if (told && told.user !== user) attempt(() => storage().removeItem(key));
  return told?.user === user ? told : null;
}

// A browser may refuse storage, or be full: then it is forgotten with the page.
function attempt(step) {
  try {
    return step();
  } catch {
    return null;
  }
}
