"""Influence functions predict retraining better than chance, and every source is there."""

from d3mjax.runtime import record
from experiments import lds_influence


def test_lds_of_influence_lies_between_chance_and_the_ceiling(tmp_path):
    run = lds_influence.main(lds_influence.Config(tasks=("patch",), smoke=True), tmp_path)
    rows = record.read_json(run / "metrics.json")["rows"]
    found = {row["method"]: row["metrics"] for row in rows}
    lds = {name: metrics["lds"]["mean"] for name, metrics in found.items()}
    ceiling = lds.pop("ceiling set by retraining noise")
    for name in ("GGN, damping 0.01", "EK-FAC, damping 0.01", "TRAK with curvature, p = 32"):
        assert lds[f"{name}, 1 checkpoint"] > 0.2  # by chance .12 over twenty masks and four groups that go together
        assert lds[f"{name}, 2 checkpoints"] < ceiling <= 1
    assert found["GGN, damping 0.01, 1 checkpoint"]["residual"]["mean"] <= 2e-4
    assert "data:image/png;base64," in (run / "report.html").read_text()
