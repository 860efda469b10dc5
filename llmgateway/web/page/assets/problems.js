// Banners: problems in the config file, and settings that wait for a restart.

import { byId, setText, show, textList } from "./dom.js";
import { moment } from "./format.js";

/** @returns {(snapshot: any) => void} */
export function problemBanners() {
  const problems = textList(byId("problem-list"));
  const settings = textList(byId("restart-list"));
  return ({ gateway: { config } }) => {
    show(byId("config-problems"), config.problems.length > 0);
    show(byId("restart-needed"), config.restart_needed.length > 0);
    setText(byId("config-loaded"), moment(config.loaded_at));
    problems.render(config.problems);
    settings.render(config.restart_needed);
  };
}
