// The code of the documents, as it stands there, with both versions of the AI SDK.

import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';

import { INSTALLED, Page, snippets } from '../page.mjs';
import { eventually } from '../wait.mjs';

const MAJORS = Object.keys(INSTALLED);

const [component] = await snippets('README.md', 'tsx');
const [transport] = await snippets('README.md', 'ts');
const [retracted] = await snippets('docs/http.md', 'js');

/** Waits until the agent has answered and the page, which is throttled, shows what is stored: so many messages. */
async function answered(page, api, id, count) {
  const isIdle = () => page.messages.length === count && page.button.textContent === 'Send';
  const isShown = async () => isIdle() && isDeepStrictEqual(page.messages, await shown(api, id)) || undefined;
  try {
    await eventually(isShown, 'the page shows what is stored');
  } catch (error) {
    assert.deepEqual(page.messages, await shown(api, id), `${error.message}; ${page.button.textContent}, ${page.errors}`);
    throw error;
  }
  assert.deepEqual(page.errors, []);
}

const shown = async (api, id) => (await api.messages(id)).map((message) => (
  message.parts.filter((part) => part.type === 'text').map((part) => part.text).join('')
));

export const readme = [
  ...MAJORS.flatMap((major) => [false, true].map((strict) => ({
    name: `readme: a new chat is opened, answered, and opened again (ai ${major}${strict ? ', strict mode' : ''})`,
    run: async ({ api, id }) => {
      const page = await Page.open(component, major, { url: api.url, id, strict });
      assert.deepEqual(page.messages, [], 'a new chat is empty');
      await page.send('hello');
      await answered(page, api, id, 2);
      await page.send('/tool');
      await answered(page, api, id, 4);
      page.close();

      const again = await Page.open(component, major, { url: api.url, id, strict });
      await answered(again, api, id, 4);
      again.close();
    },
  }))),
  ...MAJORS.map((major) => ({
    name: `readme: a page reloaded in mid-answer shows it once and whole (ai ${major})`,
    run: async ({ api, id }) => {
      const page = await Page.open(component, major, { url: api.url, id });
      await page.send('/slow 60');
      await eventually(() => page.messages.at(1)?.length > 20 || undefined, 'some of the answer');
      page.close();
      const again = await Page.open(component, major, { url: api.url, id });
      await answered(again, api, id, 2);
      again.close();
    },
  })),
  ...MAJORS.map((major) => ({
    name: `readme: its stop button ends the run (ai ${major})`,
    run: async ({ api, id }) => {
      const page = await Page.open(component, major, { url: api.url, id });
      await page.send('/slow 500');
      await eventually(() => page.messages.at(1)?.length > 20 || undefined, 'some of the answer');
      assert.equal(page.button.textContent, 'Stop');
      page.button.click();
      await answered(page, api, id, 2);
      const [run] = await api.runs(id);
      assert.equal(run.status, 'cancelled');
      page.close();
    },
  })),
  ...MAJORS.map((major) => ({
    name: `readme: a transport that sends the last message alone (ai ${major})`,
    run: async ({ api, id }) => {
      const line = /^const transport = .*;$/m;
      assert.match(component, line, 'the component has a transport to be replaced');
      const page = await Page.open(component.replace(line, transport), major, { url: api.url, id });
      for (const [text, count] of [['one', 2], ['two', 4]]) {
        await page.send(text);
        await answered(page, api, id, count);
      }
      page.close();
    },
  })),
  {
    name: 'readme: what a model took back is left out',
    run: async () => {
      const parts = [{ type: 'text', text: 'a' }, { type: 'data-retracted', data: { parts: [0] } }, { type: 'text', text: 'b' }];
      const show = new Function('message', `${retracted}; return shown;`);
      assert.deepEqual(show({ parts }), [{ type: 'text', text: 'b' }]);
    },
  },
];
