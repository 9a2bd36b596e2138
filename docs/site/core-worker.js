// Runs the engine's core in Python, in a thread of its own.

import { loadPyodide } from "./pyodide/pyodide.mjs";

const bytes = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());

const ready = (async () => {
  const pyodide = await loadPyodide({ indexURL: new URL("./pyodide/", import.meta.url).href });
  pyodide.unpackArchive(await bytes("./msgspec.whl"), "wheel");
  pyodide.FS.writeFile("/engine.zip", await bytes("./engine.zip"));
  await pyodide.runPythonAsync("import sys; sys.path.insert(0, '/engine.zip')");
  return pyodide.runPythonAsync("from engine.whatif.playground import play; play");
})();
ready.then(() => postMessage({ ready: true }), (error) => postMessage({ failed: String(error) }));

onmessage = async ({ data: { number, sliders, policy } }) => {
  const play = await ready;
  postMessage({ number, answer: JSON.parse(play(JSON.stringify(sliders), policy)) });
};
