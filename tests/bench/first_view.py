"""How large the page of SiT-XL/2 at 20 noise levels is, and how soon its first view is there.

    python tests/bench/first_view.py

Prints the file's size, then for every opening in Chromium the milliseconds from the start of the
navigation to the first paint (name, verdict, symptoms), to the still of the first figure, to that
figure alive, and to all that are not folded.
Chromium is not driven by a debugger: under one it parses plotly.js three times more, because it
wants to know where the exceptions that plotly.js catches were thrown.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dar_probe.reports.pages import analysis  # noqa: E402
from dar_probe.results import metrics  # noqa: E402
from dar_probe.results.verdict import judge  # noqa: E402
from tests.helpers.synthetic import dataset  # noqa: E402

WATCH = """<script>
  const times = {};
  const done = () => {
    times.paint = performance.getEntriesByType("paint")[0].startTime;
    console.log("TIMES" + JSON.stringify(times));
  };
  new MutationObserver((_, watcher) => {
    const painted = (name) => {
      if (name in times) return;
      times[name] = 0;
      requestAnimationFrame(() => setTimeout(() => { times[name] = performance.now(); }));
    };
    if (document.querySelector(".still")) painted("still");
    if (!document.querySelector(".plot.js-plotly-plot .trace")) return;
    painted("alive");
    const open = [...document.querySelectorAll(".plot:not(.js-plotly-plot)")];
    if (open.some((plot) => !plot.closest("details:not([open])"))) return;
    times.all = performance.now();
    watcher.disconnect();
    setTimeout(done, 500);
  }).observe(document, { childList: true, subtree: true });
</script>"""


def main() -> None:
    ds = dataset(blocks=28, samples=64, levels=20, routing="dar")
    found = metrics.compute(ds)
    text = analysis.render(ds, found, judge(ds, found))
    print(f"{len(text.encode()) / 1e6:.2f} MB")
    watched = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', WATCH, text, count=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(watched, encoding="utf-8")
        for at in range(5):
            times = opened(path, Path(folder) / f"profile{at}")
            print(
                ", ".join(
                    f"{name} {times[name]:.0f} ms" for name in ("paint", "still", "alive", "all")
                )
            )


def opened(path: Path, profile: Path) -> dict[str, float]:
    """Open a page, and return what its watcher wrote to the console."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"]
    flags += ["--enable-logging=stderr", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    command = [str(shutil.which("chromium")), *flags, path.as_uri()]
    browser = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in browser.stderr or []:
            if "TIMES" in line:
                return json.loads(re.search(r"TIMES({[^}]*})", line)[1])
    finally:
        browser.terminate()
        browser.communicate()
    raise SystemExit("Chromium ended before every figure was drawn")


if __name__ == "__main__":
    main()
