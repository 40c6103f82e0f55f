"use strict";
// Polls /api/status and updates the existing rows in place, so focus and scroll position stay.
(() => {
  const config = document.getElementById("status-script").dataset;
  const roundsShown = Number(config.roundsShown);
  const KINDS = { up: "pass", down: "fail", pending: "skip" };
  const SYMBOLS = { pass: "✓", fail: "✕", skip: "–" };
  const rows = new Map([...document.querySelectorAll("#rows tr")].map((row) => [row.dataset.name, row]));
  const byId = (id) => document.getElementById(id);
  let version = config.version;
  let timer = 0;

  const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const field = (row, name) => row.querySelector(`[data-field="${name}"]`);

  // as format_duration() in plots.py
  function formatDuration(seconds) {
    if (seconds === null) return "";
    if (seconds < 0.00995) return `${(seconds * 1000).toFixed(1)} ms`;
    if (seconds < 0.9995) return `${(seconds * 1000).toFixed(0)} ms`;
    if (seconds < 120) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
    const whole = Math.round(seconds);
    return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  }

  // as the macro history() in status.html.j2
  function drawHistory(cell, history) {
    const svg = cell.querySelector("svg");
    const shapes = [svg.querySelector(".grid")];
    const rect = (kind, x, y, height) => {
      const one = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      // 1e-6 as in the template: Python and JavaScript round 20.25 differently
      const fixed = (value) => (value + 1e-6).toFixed(1);
      const attributes = { class: kind, x, y: fixed(y), width: 3, height: fixed(height) };
      for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
      shapes.push(one);
    };
    const most = Math.max(...history.ttft_seconds.filter((one) => one !== null), 0);
    history.up.forEach((up, index) => {
      const x = (roundsShown - history.up.length + index) * 4;
      const ttft = history.ttft_seconds[index];
      const height = Math.max((22 * ttft) / most, 1);
      if (ttft !== null && most) rect("spark-up", x, 23 - height, height);
      if (up) rect("spark-ok", x, 26, 2); else rect("spark-down", x, 22, 8);
    });
    svg.replaceChildren(...shapes);
    svg.setAttribute("aria-label", history.about);
  }

  // updates a row and returns the change to announce, if any
  function updateRow(one, row) {
    const kind = KINDS[one.state];
    const problem = one.problem;
    const model = problem && problem.model ? ` (${problem.model})` : "";
    const failed = problem && problem.status === "fail";
    const text = problem ? `${failed ? "" : "warning from "}${problem.check}${model}: ${problem.message}` : "";
    let change = "";
    if (row.dataset.state !== one.state) {
      // the first result is not announced as a change
      if (one.state === "down") change = `${one.name} is down: ${text}`;
      else if (row.dataset.state === "down") change = `${one.name} is up again`;
      row.dataset.state = one.state;
      row.className = kind;
      field(row, "badge").className = `badge ${kind}`;
      if (change) {
        row.classList.add("changed");
        setTimeout(() => row.classList.remove("changed"), 3000);
      }
    }
    setText(field(row, "mark"), SYMBOLS[kind]);
    setText(field(row, "state"), one.state);
    setText(field(row, "dialect"), one.dialect);
    setText(field(row, "problem"), text);
    setText(field(row, "hint"), failed ? problem.hint : "");
    setText(field(row, "apis"), one.apis_text);
    setText(field(row, "ttft"), formatDuration(one.ttft_seconds));
    setText(field(row, "rate"), one.tokens_per_second === null ? "" : one.tokens_per_second.toFixed(1));
    setText(field(row, "checked"), one.checked ? one.checked.slice(11, 19) : "");
    // both are needed: two rounds may end in the same second, and a restarted exporter counts from zero
    const round = `${one.runs} ${one.checked}`;
    if (row.dataset.round !== round) {
      row.dataset.round = round;
      drawHistory(field(row, "history"), one.history);
    }
    return change;
  }

  function update(data) {
    // an exporter with other endpoints was started at this address: load its page
    if (data.endpoints.length !== rows.size || data.endpoints.some((one) => !rows.has(one.name))) {
      location.reload();
      return;
    }
    const changes = data.endpoints.map((one) => updateRow(one, rows.get(one.name))).filter(Boolean);
    const kind = KINDS[data.state];
    byId("verdict").className = `verdict ${kind}`;
    setText(byId("verdict").firstElementChild, SYMBOLS[kind]);
    setText(byId("verdict-text"), data.verdict);
    document.title = `${data.down ? `(${data.down} down) ` : ""}stackgen`;
    setText(byId("lost"), data.in_time ? "" : `Checks are behind schedule, so this page may be out of date: ${data.trouble}`);
    if (changes.length) {
      const more = changes.length > 3 ? ` and ${changes.length - 3} more` : "";
      const time = new Date().toISOString().slice(11, 19);
      setText(byId("live"), `${time} ${changes.slice(0, 3).join("; ")}${more}`);
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
      } else if (byId("lost").dataset.unreachable) {
        setText(byId("lost"), "");
      }
      delete byId("lost").dataset.unreachable;
    } catch {
      byId("lost").dataset.unreachable = "1";
      setText(byId("lost"), "The exporter does not respond, so this page may be out of date.");
    }
    // a hidden tab doesn't poll
    if (!document.hidden) timer = setTimeout(poll, Number(config.poll) * 1000);
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  timer = setTimeout(poll, Number(config.poll) * 1000);
})();
