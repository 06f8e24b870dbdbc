(function () {
  "use strict";
  var bar = document.getElementById("filters");
  if (!bar) return;
  var change = "";
  var suite = document.getElementById("suite-filter");
  var text = document.getElementById("text-filter");
  var status = document.getElementById("shown");
  var items = Array.prototype.slice.call(document.querySelectorAll("#answers > li"));
  var texts = items.map(function (item) { return item.textContent.toLowerCase(); });

  function show() {
    var wanted = text.value.trim().toLowerCase();
    var shown = 0;
    items.forEach(function (item, i) {
      var fits = (!change || item.dataset.change === change) && (!suite.value || item.dataset.suite === suite.value) && texts[i].indexOf(wanted) !== -1;
      item.hidden = !fits;
      shown += fits ? 1 : 0;
    });
    status.textContent = shown === items.length ? shown + " answers" : shown + " of " + items.length + " answers";
  }

  bar.addEventListener("click", function (event) {
    var button = event.target.closest("button");
    if (!button) return;
    change = button.dataset.value;
    bar.querySelectorAll("button").forEach(function (other) {
      other.setAttribute("aria-pressed", String(other === button));
    });
    show();
  });
  suite.addEventListener("change", show);
  text.addEventListener("input", show);
  bar.hidden = false;
})();
