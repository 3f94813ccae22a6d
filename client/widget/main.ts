/** The page: which part speaks to which. */
import { Link, type LinkState } from "../index.js";
import { Announcer } from "./announcer.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { ConnectionNotice } from "./connectionNotice.js";
import { byId } from "./dom.js";
import { followEnd } from "./follow.js";
import { Memory } from "./memory.js";
import { wireThemeButton } from "./themeButton.js";
import { caution, modelLabel } from "./wording.js";

const announcer = new Announcer(byId("announcer", HTMLElement));
const follow = followEnd(byId("jump", HTMLButtonElement));
const notice = new ConnectionNotice(
  byId("notice", HTMLElement),
  (sentence) => announcer.say(sentence),
  () => link.open(),
);
const link = new Link({ edge: location.origin, onState: show });

const chat = new Chat(
  link,
  // A small model wanders unless cooled, and then repeats itself unless each repetition costs a little more.
  { maxTokens: 768, temperature: 0.3, topP: 0.9, repetitionPenalty: 1.05, frequencyPenalty: 0.15, overflow: "drop_oldest" },
  {
    transcript: byId("transcript", HTMLOListElement),
    welcome: byId("welcome", HTMLElement),
    onAnswering: (answering) => {
      composer.answering = answering;
    },
    onRetry: () => composer.focus(),
    say: (sentence) => announcer.say(sentence),
    grown: follow.grown,
  },
  new Memory(),
);

const composer = new Composer(byId("composer", HTMLFormElement), byId("question", HTMLTextAreaElement), byId("send", HTMLButtonElement), {
  ask,
  stop: () => chat.stop(),
});

function ask(question: string): void {
  chat.ask(question);
  follow.resume();
}

function show(state: LinkState): void {
  const model = byId("model", HTMLElement);
  model.dataset.state = state.kind;
  model.toggleAttribute("data-simulated", state.kind === "open" && state.hello.engine === "simulated");
  model.lastElementChild?.replaceChildren(modelLabel(state));
  if (state.kind === "open") byId("caution", HTMLElement).textContent = caution(state.hello);
  notice.show(state);
}

for (const suggestion of byId("suggestions", HTMLUListElement).querySelectorAll("button"))
  suggestion.addEventListener("click", () => {
    ask(suggestion.textContent ?? "");
    composer.focus();
  });

byId("new-chat", HTMLButtonElement).addEventListener("click", () => {
  chat.startOver();
  composer.focus();
});

wireThemeButton(byId("theme", HTMLButtonElement));
composer.focusBox();
// What runs leads back to its origin, and this page's first connection with it.
chat.restore();
link.open();
