(function () {
  "use strict";
  var bar = document.getElementById("filters");
  if (!bar) return;
  var fields = ["severity", "check", "split"].map(function (name) { return { name: name, input: document.getElementById("want-" + name) }; });
  var search = document.getElementById("want-text");
  var status = document.getElementById("shown");
  var groups = Array.prototype.slice.call(document.querySelectorAll("details.group"));
  var opened = groups.map(function (group) { return group.open; });
  var items = Array.prototype.slice.call(document.querySelectorAll("li.item"));
  var texts = items.map(function (item) { return item.textContent.toLowerCase(); });

  function show() {
    var words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    var narrow = words.length > 0 || fields.some(function (field) { return field.input.value; });
    var shown = 0;
    items.forEach(function (item, n) {
      var fits = fields.every(function (field) { return !field.input.value || item.dataset[field.name] === field.input.value; });
      item.hidden = !(fits && words.every(function (word) { return texts[n].indexOf(word) >= 0; }));
      shown += item.hidden ? 0 : 1;
    });
    groups.forEach(function (group, n) {
      var any = group.querySelector("li.item:not([hidden])") !== null;
      group.hidden = !any;
      group.open = narrow ? any : opened[n];
    });
    status.textContent = (narrow ? shown + " of " : "") + items.length + (items.length === 1 ? " finding" : " findings") + " on this page";
  }

  fields.forEach(function (field) { field.input.addEventListener("change", show); });
  search.addEventListener("input", show);
  document.getElementById("want-all").addEventListener("click", function () {
    fields.forEach(function (field) { field.input.value = ""; });
    search.value = "";
    show();
  });
  function reveal() {
    var group = /^#group-\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (group) { group.open = true; group.scrollIntoView(); }
  }
  window.addEventListener("hashchange", reveal);
  bar.hidden = false;
  reveal();
})();
