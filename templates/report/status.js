"use strict";
// Asks for news and writes them into the rows that are there: nothing is rebuilt, so focus and scroll stay.
(() => {
  const own = document.getElementById("news").dataset;
  const slots = Number(own.slots);
  const KINDS = { up: "pass", down: "fail", pending: "skip" };
  const WORDS = { up: "up", down: "down", pending: "waiting" };
  const SYMBOLS = { pass: "✓", fail: "✕", skip: "–" };
  const rows = new Map([...document.querySelectorAll("#rows tr")].map((row) => [row.dataset.name, row]));
  const byId = (id) => document.getElementById(id);
  let version = own.version;
  let timer = 0;

  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const field = (row, name) => row.querySelector(`[data-field="${name}"]`);

  function duration(seconds) {
    if (seconds === null) return "";
    if (seconds < 0.00995) return `${(seconds * 1000).toFixed(1)} ms`;
    if (seconds < 0.9995) return `${(seconds * 1000).toFixed(0)} ms`;
    if (seconds < 120) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
    return `${Math.floor(seconds / 60)} min ${(seconds % 60).toFixed(0)} s`;
  }

  function draw(cell, history) {
    const svg = cell.querySelector("svg");
    const made = [svg.querySelector(".grid")];
    const rect = (kind, x, y, height) => {
      const one = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const all = { class: kind, x, y: y.toFixed(1), width: 3, height: height.toFixed(1) };
      for (const [name, value] of Object.entries(all)) one.setAttribute(name, value);
      made.push(one);
    };
    const most = Math.max(...history.ttft_seconds.filter((one) => one !== null), 0);
    history.up.forEach((up, index) => {
      const x = (slots - history.up.length + index) * 4;
      const ttft = history.ttft_seconds[index];
      const height = Math.max((22 * ttft) / most, 1);
      if (ttft !== null && most) rect("spark-up", x, 23 - height, height);
      if (up) rect("spark-ok", x, 26, 2); else rect("spark-down", x, 22, 8);
    });
    svg.replaceChildren(...made);
    svg.setAttribute("aria-label", history.about);
  }

  function show(one, row) {
    const kind = KINDS[one.state];
    const problem = one.problem;
    const model = problem && problem.model ? ` (${problem.model})` : "";
    const failed = problem && problem.status === "fail";
    const words = problem ? `${failed ? "" : "warning of "}${problem.check}${model}: ${problem.message}` : "";
    let news = "";
    if (row.dataset.state !== one.state) {
      // the first result is no change
      if (one.state === "down") news = `${one.name} is down: ${words}`;
      else if (row.dataset.state === "down") news = `${one.name} is up again`;
      row.dataset.state = one.state;
      row.className = kind;
      field(row, "badge").className = `badge ${kind}`;
      if (news) {
        row.classList.add("changed");
        setTimeout(() => row.classList.remove("changed"), 3000);
      }
    }
    put(field(row, "mark"), SYMBOLS[kind]);
    put(field(row, "state"), WORDS[one.state]);
    put(field(row, "dialect"), one.dialect);
    put(field(row, "problem"), words);
    put(field(row, "hint"), failed ? problem.hint : "");
    put(field(row, "ttft"), duration(one.ttft_seconds));
    put(field(row, "rate"), one.tokens_per_second === null ? "" : one.tokens_per_second.toFixed(1));
    put(field(row, "checked"), one.checked ? one.checked.slice(11, 19) : "");
    // two rounds may end in one second, and an exporter that was started again counts anew
    const round = `${one.runs} ${one.checked}`;
    if (row.dataset.round !== round) {
      row.dataset.round = round;
      draw(field(row, "history"), one.history);
    }
    return news;
  }

  function update(data) {
    // another exporter answers, with other endpoints: its page is another one
    if (data.endpoints.length !== rows.size || data.endpoints.some((one) => !rows.has(one.name))) {
      location.reload();
      return;
    }
    const news = data.endpoints.map((one) => show(one, rows.get(one.name))).filter(Boolean);
    const kind = KINDS[data.state];
    byId("verdict").className = `verdict ${kind}`;
    put(byId("verdict").firstElementChild, SYMBOLS[kind]);
    put(byId("verdict-text"), data.verdict);
    document.title = `${data.down ? `(${data.down} down) ` : ""}stackgen`;
    put(byId("lost"), data.in_time ? "" : `Rounds don't complete in time, so this may be old: ${data.trouble}`);
    if (news.length) {
      const more = news.length > 3 ? ` and ${news.length - 3} more` : "";
      const time = new Date().toISOString().slice(11, 19);
      put(byId("live"), `${time} ${news.slice(0, 3).join("; ")}${more}`);
    }
  }

  async function poll() {
    clearTimeout(timer);
    try {
      const answer = await fetch("api/status", { headers: { "If-None-Match": version }, cache: "no-store" });
      if (answer.status === 200) {
        update(await answer.json());
        version = answer.headers.get("ETag");
      } else if (answer.status !== 304) {
        throw new Error(answer.status);
      } else if (byId("lost").dataset.gone) {
        put(byId("lost"), "");
      }
      delete byId("lost").dataset.gone;
    } catch {
      byId("lost").dataset.gone = "1";
      put(byId("lost"), "The exporter does not answer: what is shown may be old.");
    }
    // a page that nobody looks at asks nothing
    if (!document.hidden) timer = setTimeout(poll, Number(own.poll) * 1000);
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  timer = setTimeout(poll, Number(own.poll) * 1000);
})();
