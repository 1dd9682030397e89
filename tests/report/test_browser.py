"""A figure in a real browser, without a network."""

import shutil
import subprocess

import pytest
from support.waiting import LIMIT

from optuna_robustloss.report.figures.noise import accuracy_against_noise
from optuna_robustloss.report.html import write_html
from report.sample import fixed

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")
def test_a_figure_is_drawn_by_a_browser_that_is_offline(tmp_path):
    name = "</script><b>x"
    table = {method: {"a": [0.5, 0.6], "b": [0.7, 0.8]} for method in ("ce", name)}
    figure = accuracy_against_noise(fixed(table), {"a": ("group", 0.2), "b": ("group", 0.4)})
    write_html(figure, tmp_path / "noise.html")
    page = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            *("--virtual-time-budget=10000", "--dump-dom"),
            (tmp_path / "noise.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    ).stdout
    assert page.count('class="trace scatter') == 4  # two lines, two bands
    assert "test accuracy, %" in page
    assert 'class="legendtext"' in page
    assert "&lt;/script&gt;&lt;b&gt;x" in page
    assert page.count('class="point ') == 4
