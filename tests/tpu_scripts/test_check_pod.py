"""A fit pod is told so; one that is short of devices, or multiplies badly, is not."""

import jax

from tpu_scripts import check_pod


def test_eight_virtual_devices_are_a_fit_pod(capsys):
    assert check_pod.check(8) == []
    assert "1 hosts, 8 x cpu" in capsys.readouterr().out


def test_too_few_devices_are_counted():
    assert check_pod.check(16) == ["--devices: asked for 16, found 8 on 1 hosts"]


def test_imprecise_products_are_found(monkeypatch):
    monkeypatch.setattr(check_pod, "product_errors", lambda: {"default": 1e-2, "highest": 1e-3})
    (found,) = check_pod.check()
    assert "relative error 1.0e-03 at highest precision" in found


def test_the_command_exits_by_what_it_found(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_pod", "--devices", str(jax.device_count())])
    assert check_pod.main() == 0
    monkeypatch.setattr("sys.argv", ["check_pod", "--devices", "5"])
    assert check_pod.main() == 1
    assert "asked for 5" in capsys.readouterr().err
    assert 0 < check_pod.product_errors(32)["highest"] < 1e-5
