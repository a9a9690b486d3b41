// Keeps the page up to date. Everything that comes in was rendered, and escaped, by the node.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const services = byId("services");
  const events = byId("events");
  const live = byId("live");
  const form = byId("filter");
  const [search, trouble] = form.querySelectorAll("input");
  const SHOWN = 100;

  const parse = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content.firstElementChild;
  };

  const shown = (row) => {
    const text = search.value.trim().toLowerCase();
    const named = text === "" || row.querySelector("th").textContent.toLowerCase().includes(text);
    row.hidden = !named || (trouble.checked && row.className === "well");
  };

  const place = (html) => {
    const row = parse(html);
    shown(row);
    const old = byId(row.id);
    if (old !== null) {
      old.replaceWith(row);
      return;
    }
    // In the node's order, which is that of code units.
    let next = null;
    for (const other of services.tBodies) {
      if (other.id > row.id) {
        next = other;
        break;
      }
    }
    services.insertBefore(row, next);
  };

  const local = (item) => {
    for (const time of item.querySelectorAll("time")) {
      const at = new Date(time.dateTime);
      time.title = time.dateTime;
      time.textContent = at.toLocaleTimeString([], { hour12: false });
    }
    return item;
  };

  const take = (frame) => {
    if (frame.all !== undefined) {
      for (const row of [...services.tBodies]) row.remove();
      for (const html of frame.all) {
        const row = parse(html);
        shown(row);
        services.append(row);
      }
    }
    for (const key of frame.gone ?? []) byId(key)?.remove();
    for (const html of frame.rows ?? []) place(html);
    for (const [key, figures] of Object.entries(frame.figures ?? {})) {
      const cells = byId(key)?.querySelectorAll(".f") ?? [];
      cells.forEach((cell, index) => { cell.textContent = figures[index]; });
    }
    if (frame.nodes !== undefined) byId("nodes").tBodies[0].innerHTML = frame.nodes;
    if (frame.status !== undefined) byId("status").innerHTML = frame.status;
    for (const html of frame.events ?? []) events.prepend(local(parse(html)));
    while (events.children.length > SHOWN) events.lastElementChild.remove();
    byId("none").hidden = services.tBodies.length > 0;
    if (frame.version !== undefined) document.body.dataset.version = frame.version;
    if (frame.last !== undefined) document.body.dataset.last = frame.last;
  };

  const connect = () => {
    const { version, last } = document.body.dataset;
    const source = new EventSource(`/dashboard/live?version=${version}&last=${last}`);
    source.onopen = () => { live.textContent = "live"; live.className = "well"; };
    source.onmessage = (event) => take(JSON.parse(event.data));
    source.onerror = () => {
      // Connected anew by hand, so that the node hears what the page shows by then.
      source.close();
      live.textContent = "no connection to the node: what is shown is old";
      live.className = "trouble";
      setTimeout(connect, 1000);
    };
  };

  for (const item of events.children) local(item);
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    for (const row of services.tBodies) shown(row);
  });
  connect();
})();
