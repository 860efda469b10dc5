// The page: which view is shown, and where snapshots go.

import { endRequest, signOut, status } from "./api.js";
import { Announcer, changes } from "./announce.js";
import { Throughput } from "./chart.js";
import { Chat } from "./chat.js";
import { Detail } from "./detail.js";
import { byId, setAttribute, show } from "./dom.js";
import { renderConnection, renderHeader, renderTitle } from "./header.js";
import { limitMeters } from "./limits.js";
import { Live } from "./live.js";
import { logTail } from "./log.js";
import { problemBanners } from "./problems.js";
import { providerCards } from "./providers.js";
import { recentTable } from "./recent.js";
import { requestTable } from "./requests.js";
import { say, signInForm } from "./sign_in.js";
import { usageTable } from "./usage.js";

const TICK_MS = 1000;
const RETRY_MS = 3000;

class Page {
  /** @type {"loading" | "sign-in" | "gateway"} */
  #view = "loading";
  #connection = "connecting";
  /** @type {any} the last snapshot, and when it came */
  #snapshot = null;
  #received_ms = 0;

  #announcer = new Announcer();
  #throughput = new Throughput();
  #chat = new Chat({ announce: (text) => this.#announcer.say(text), signedOut: () => this.#signedOut() });
  #live = new Live({
    snapshot: (snapshot) => this.#take(snapshot),
    state: (state) => this.#connected(state),
    signedOut: () => this.#signedOut(),
  });
  #detail = new Detail((id) => this.#end(id));
  #ageing = [renderHeader, requestTable((item) => this.#detail.open(item), (id) => this.#end(id)), limitMeters()];
  #steady = [problemBanners(), providerCards(), usageTable(), recentTable((item) => this.#detail.open(item)), logTail()];

  constructor() {
    signInForm(() => this.begin());
    byId("sign-out").addEventListener("click", () => this.#signOut());
    byId("reconnect").addEventListener("click", () => this.#live.retry());
    document.addEventListener("visibilitychange", () => this.#draw());
    setInterval(() => this.#tick(), TICK_MS);
  }

  /** Find out whether somebody is signed in, and go on from there. */
  async begin() {
    try {
      this.#take(await status());
      this.#live.start();
      byId("gateway-title").focus();
    } catch (error) {
      if (error.status === 401) this.#show("sign-in");
      else this.#unreachable();
    }
  }

  #unreachable() {
    this.#connected("reconnecting");
    show(byId("loading"), true);
    setTimeout(() => this.begin(), RETRY_MS);
  }

  #take(snapshot) {
    const before = this.#snapshot;
    // Nothing that one user saw or wrote may be left for the next.
    if (before && before.viewer.user !== snapshot.viewer.user) {
      this.#chat.forget();
      return location.reload();
    }
    this.#snapshot = snapshot;
    this.#received_ms = performance.now();
    if (before) changes(before, snapshot).forEach((text) => this.#announcer.say(text));
    if (this.#view !== "gateway") this.#show("gateway");
    return this.#draw();
  }

  #connected(state) {
    if (state === this.#connection) return;
    if (state === "reconnecting") this.#announcer.say("Connection to the gateway lost.");
    else if (this.#connection === "reconnecting") this.#announcer.say("Connected to the gateway again.");
    this.#connection = state;
    this.#drawConnection();
  }

  // Nobody sees a hidden tab, but its title.
  #draw() {
    renderTitle(this.#view, this.#connection, this.#snapshot);
    if (!this.#snapshot || document.hidden) return;
    for (const render of this.#ageing) render(this.#snapshot, this.#elapsed_s());
    for (const render of this.#steady) render(this.#snapshot);
    this.#throughput.render(this.#snapshot);
    this.#detail.render(this.#snapshot);
    this.#chat.render(this.#snapshot);
  }

  #tick() {
    if (document.hidden || this.#view === "sign-in") return;
    this.#drawConnection();
    if (!this.#snapshot || this.#connection === "reconnecting") return;
    for (const render of this.#ageing) render(this.#snapshot, this.#elapsed_s());
  }

  #drawConnection() {
    renderConnection(this.#connection, this.#snapshot, this.#elapsed_s());
    renderTitle(this.#view, this.#connection, this.#snapshot);
  }

  #elapsed_s() {
    return this.#snapshot ? (performance.now() - this.#received_ms) / 1000 : 0;
  }

  #show(view) {
    this.#view = view;
    setAttribute(document.body, "data-view", view);
    const inside = view === "gateway";
    for (const id of ["facts", "viewer", "jump", "gateway"]) show(byId(id), inside);
    show(byId("sign-in"), view === "sign-in");
    show(byId("loading"), view === "loading");
    if (view === "sign-in") byId("key").focus();
    renderTitle(view, this.#connection, this.#snapshot);
  }

  #signedOut() {
    this.#live.stop();
    this.#connected("connecting");
    this.#show("sign-in");
    say("The session has ended. Sign in again.");
  }

  async #end(id) {
    try {
      await endRequest(id);
      this.#announcer.say("The request was ended.");
    } catch (error) {
      if (error.status === 401) this.#signedOut();
      else if (error.status !== 404) alert(error.message); // 404: it has ended by itself
    }
  }

  async #signOut() {
    this.#live.stop();
    try {
      await signOut();
    } catch (error) {
      if (error.status !== 401) return this.#live.start(); // still signed in, and the page shows why
    }
    this.#chat.forget();
    return location.reload(); // and with it goes everything that this user saw
  }
}

new Page().begin();
