"""Does it fit: the sums, the sentence, the devices and their file."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import enxuto as ex
from enxuto import zoo
from enxuto.errors import RangeError, TargetError, TaskError
from enxuto.memory import Device, devices, fits
from enxuto.memory.boards import BUILT_IN
from enxuto.memory.fit import layout_of
from enxuto.task import Task
from toys import ResidualCnn, inputs, seeded

IMAGES = torch.zeros(2, 1, 28, 28)
LENET_WEIGHTS = 784 * 300 + 300 * 100 + 100 * 10
LENET_OUTPUTS = 300 + 100 + 10
KIB = 1024


def small(**changes: object) -> dict[str, Device]:
    figures = {"ram_bytes": 10_000, "flash_bytes": 300_000, "reserve_bytes": 1000, "flash_reserve_bytes": 2000}
    return {"small": Device(name="small", **(figures | changes))}  # type: ignore[arg-type]


def test_the_sums_of_lenet_300_100_by_arithmetic():
    model = zoo.build("lenet-300-100")
    floats = fits(model, IMAGES, "small", bits=32, devices=small())
    assert floats.ram_bytes == 4 * (784 + 300) + 1000
    assert floats.flash_bytes == 4 * (LENET_WEIGHTS + LENET_OUTPUTS) + 2000
    integers = fits(model, IMAGES, "small", devices=small())
    assert integers.ram_bytes == 784 + 304 + 1000  # 300 bytes, aligned to 16
    assert integers.flash_bytes == LENET_WEIGHTS + 4 * LENET_OUTPUTS + 4 * LENET_OUTPUTS + 2000  # scales and biases
    assert (floats.fits, integers.fits) == (False, True)
    assert integers.lower_bound_bytes == 784 + 304
    assert integers.peak_path == "fc1"


def test_a_file_takes_the_place_of_the_weights_in_flash_and_a_coded_one_is_decoded_in_ram():
    model = zoo.build("lenet-300-100")
    plain = fits(model, IMAGES, "small", file_bytes=290_000, devices=small())
    assert (plain.flash_bytes, plain.decode_bytes) == (292_000, 0)
    coded = fits(model, IMAGES, "small", file_bytes=20_000, devices=small(ram_bytes=250_000))
    assert coded.flash_bytes == 22_000
    assert coded.decode_bytes == 784 * 300 + 4 * 300 + 4 * 300
    assert coded.ram_bytes == 1088 + 1000 + coded.decode_bytes
    assert coded.fits
    tight = fits(model, IMAGES, "small", file_bytes=20_000, devices=small())
    assert "decoding the largest layer takes 238 kB" in tight.verdict


def test_where_an_operating_system_loads_the_weights_they_take_ram():
    answer = fits(zoo.build("lenet-300-100"), IMAGES, "small", devices=small(weights_in="ram"))
    assert answer.ram_bytes == 1088 + 1000 + answer.layout.weights_bytes
    assert "weights take 269 kB" in answer.verdict


def test_the_verdict_says_what_is_missing_where_and_what_would_help():
    model = zoo.build("resnet-20").eval()
    answer = fits(model, IMAGES, "tight", bits=32, devices={"tight": small(ram_bytes=60_000)["small"], **devices()})
    assert not answer.fits
    assert re.search(r"needs 152 kB of 60.0 kB RAM: layer stages\.0\.\S+ holds 3 maps of 16x28x28", answer.verdict)
    assert "needs 1.09 MB of 300 kB flash" in answer.verdict
    assert "int8 would need 39.2 kB RAM and 279 kB flash, and fits" in answer.verdict
    assert "cortex-m0+ has room for it as it is" in answer.verdict


def test_int8_that_does_not_fit_either_is_not_promised():
    answer = fits(zoo.build("resnet-20").eval(), IMAGES, "small", bits=32, devices=small())
    assert "which is still too much" in answer.verdict
    narrower = fits(zoo.build("resnet-20").eval(), IMAGES, "small", devices=small())
    assert "fewer channels around stages.0" in narrower.verdict


def test_what_fits_says_with_how_much():
    answer = fits(zoo.build("lenet-300-100"), IMAGES)
    assert answer.verdict == "fits cortex-m4: needs 17.5 kB of 262 kB RAM and 335 kB of 1.05 MB flash"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Conv2d(2, 16, 1) for _ in range(2))
        self.thin = nn.ModuleList(nn.Conv2d(16, 2, 1) for _ in range(2))

    def forward(self, x):
        first, second = self.wide[0](x), self.wide[1](x)
        return self.thin[0](first) + self.thin[1](second)


def test_another_order_is_used_and_named_where_it_helps():
    answer = fits(Branches(), torch.zeros(1, 2, 20, 20), "small", bits=32, devices=small(ram_bytes=33_000))
    map_ = 4 * 400
    assert answer.reordered
    assert answer.layout.given_peak_bytes == map_ * (16 + 16 + 2)
    assert answer.ram_bytes == map_ * (16 + 2 + 2) + 1000
    assert "fits small, in another order of its layers" in answer.verdict
    assert not fits(zoo.build("lenet-5"), IMAGES).reordered


def test_a_model_and_its_folded_copy_need_the_same():
    model = seeded(ResidualCnn)
    folded, _ = ex.Fold()(model, Task(model, calibration=[inputs(ResidualCnn)]))
    one, other = (layout_of(each, inputs(ResidualCnn)) for each in (model, folded))
    assert one.weights_bytes == other.weights_bytes
    assert one.arena == other.arena


def test_a_shared_weight_is_stored_once():
    layer = nn.Linear(16, 16, bias=False)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert layout_of(model, torch.zeros(1, 16), bits=32).weights_bytes == 4 * 16 * 16


def test_a_network_without_layers_holds_its_input():
    answer = fits(nn.Identity(), torch.zeros(1, 100), "small", bits=32, devices=small(ram_bytes=1100))
    assert answer.ram_bytes == 400 + 1000
    assert answer.layout.weights_bytes == 0


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_network_of_the_zoo_fits_a_large_microcontroller(name):
    answer = fits(zoo.build(name).eval(), IMAGES, "cortex-m55")
    assert answer.fits
    assert answer.layout.arena.size_bytes <= 1.1 * answer.lower_bound_bytes


def test_a_phone_holds_lenet_and_its_weights():
    answer = fits(zoo.build("lenet-5"), IMAGES, "phone", bits=32)
    assert answer.fits
    assert answer.ram_bytes == 57_600 + answer.layout.weights_bytes + answer.device.reserve_bytes


def test_the_devices_that_come_along_are_complete():
    known = devices()
    assert list(known)[:5] == ["cortex-m0+", "cortex-m4", "cortex-m7", "cortex-m55", "esp32-s3"]
    assert {"raspberry-pi-zero", "raspberry-pi-4", "phone"} < set(known)
    assert (known["cortex-m4"].ram_bytes, known["cortex-m4"].flash_bytes) == (256 * KIB, 1024 * KIB)
    assert known["cortex-m0+"].ram_bytes == 264 * KIB
    for device in known.values():
        assert device.board
        assert device.source
        assert 0 < device.reserve_bytes < device.ram_bytes
        assert 0 < device.flash_reserve_bytes < device.flash_bytes
    assert {name for name, device in known.items() if device.weights_in == "ram"} == {
        "raspberry-pi-zero",
        "raspberry-pi-4",
        "phone",
    }


def test_a_file_adds_devices_and_replaces_those_of_the_same_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("watch:\n  ram: 96 KiB\n  flash: 512 kB\n  reserve: 0 kB\ncortex-m4:\n  ram: 64 KiB\n  flash: 256 KiB\n")
    known = devices(path)
    assert known["watch"] == Device(name="watch", ram_bytes=96 * KIB, flash_bytes=512_000)
    assert known["cortex-m4"].ram_bytes == 64 * KIB
    assert "phone" in known
    assert fits(zoo.build("lenet-300-100"), IMAGES, "watch", devices=path).device == known["watch"]


def test_the_file_that_comes_along_is_a_file_of_a_users_form():
    assert devices(BUILT_IN) == devices()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- ram: 1", "holds no devices"),
        ("", "holds no devices"),
        ("watch: 5", "holds no devices"),
        ("watch: {ram: 1 kB", "cannot be read"),
        ("a: {ram: 1 kB, flash: 1 MB}\na: {ram: 2 kB, flash: 1 MB}", "'a' stands there twice"),
        ("a: {ram: 1 kB, flash: 1 MB, ram: 2 kB}", "'ram' stands there twice"),
        ("watch: {ram: 96 KiB}", "'watch' in .* has no flash"),
        ("watch: {ram: 96 KiB, flash: much}", "flash='much'.*no size"),
        ("watch: {ram: 0, flash: 1}", "ram=0.*no size"),
        ("watch: {ram: 1, flash: 1, reserve: false}", "reserve=False.*no size"),
        ("watch: {ram: 96 KiB, flash: 1 MB, rom: 2}", "'rom', which is not known; the keys are ram"),
        ("watch: {ram: 96 KiB, flash: 1 MB, reserve: 96 KiB}", "leave something for the network"),
        ("watch: {ram: 96 KiB, flash: 1 MB, weights_in: rom}", "weights_in='rom'"),
    ],
)
def test_a_broken_file_of_devices_is_refused(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TaskError, match=words):
        devices(path)


def test_a_missing_file_of_devices_is_refused(tmp_path):
    with pytest.raises(TaskError, match="cannot be read"):
        devices(tmp_path / "none.yaml")


def test_bad_arguments_are_refused():
    model = zoo.build("lenet-300-100")
    with pytest.raises(TargetError, match="'cortex-m9' is not known; use one of cortex-m0"):
        fits(model, IMAGES, "cortex-m9")
    with pytest.raises(RangeError, match="bits=4"):
        fits(model, IMAGES, bits=4)
    for size in (0, -5, 1.5, "20 kB", True):
        with pytest.raises(RangeError, match="no size of a file"):
            fits(model, IMAGES, file_bytes=size)
    with pytest.raises(TaskError, match="fails on the batch"):
        fits(model, torch.zeros(2, 5))
    with pytest.raises(TaskError, match="the batch is str"):
        fits(model, "images")
    with pytest.raises(TaskError, match="the model is int, not a torch"):
        fits(5, IMAGES)
