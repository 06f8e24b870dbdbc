(function () {
  "use strict";
  document.querySelectorAll(".needs-script").forEach(function (part) { part.hidden = false; });
  document.querySelectorAll(".tokens").forEach(function (tokens) {
    var told = tokens.parentNode.querySelector(".told");
    var chosen = null;
    told.hidden = false;
    tokens.classList.add("live");
    tokens.addEventListener("click", function (event) {
      var token = event.target.closest(".t");
      if (!token) return;
      if (chosen) chosen.classList.remove("on");
      chosen = token === chosen ? null : token;
      if (chosen) chosen.classList.add("on");
      told.textContent = chosen ? chosen.title : "";
    });
  });
})();
