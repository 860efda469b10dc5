// The sign-in form. The key is sent once and then forgotten; the session is an HttpOnly cookie.

import { signIn } from "./api.js";
import { byId, setAttribute, setText } from "./dom.js";

/** @param {() => void} signedIn */
export function signInForm(signedIn) {
  const form = byId("sign-in-form");
  const key = byId("key");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = byId("sign-in-button");
    say("");
    button.disabled = true;
    try {
      await signIn(key.value.trim());
      form.reset();
      signedIn();
    } catch (error) {
      say(error.status === 401 ? "This key is not valid. Check that it is complete." : error.message);
      key.focus();
      key.select();
    } finally {
      button.disabled = false;
    }
  });
}

/** Show why signing in is needed, or failed; read out by screen readers. */
export function say(text) {
  setText(byId("sign-in-error"), text);
  setAttribute(byId("key"), "aria-invalid", text ? "true" : null);
}
