(function () {
  "use strict";
  var bar = document.getElementById("filters");
  if (!bar) return;
  var wanted = { change: "", suite: "" };
  var status = document.getElementById("shown");
  var sections = Array.prototype.slice.call(document.querySelectorAll("section.examples"));

  function show() {
    var shown = 0, all = 0;
    sections.forEach(function (section) {
      var here = 0;
      section.querySelectorAll("li.example").forEach(function (item) {
        var fits = (!wanted.suite || section.dataset.suite === wanted.suite) && (!wanted.change || item.dataset.change === wanted.change);
        item.hidden = !fits;
        here += fits ? 1 : 0;
        all += 1;
      });
      section.hidden = here === 0;
      shown += here;
    });
    status.textContent = shown === all ? all + " examples" : shown + " of " + all + " examples";
  }

  bar.addEventListener("click", function (event) {
    var button = event.target.closest("button");
    if (!button) return;
    wanted[button.dataset.group] = button.dataset.value;
    bar.querySelectorAll("button[data-group=" + button.dataset.group + "]").forEach(function (other) {
      other.setAttribute("aria-pressed", String(other === button));
    });
    show();
  });
  bar.hidden = false;
})();
