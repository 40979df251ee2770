"""Faces are found at any angle, aligned to a template, and pasted back without a seam."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset import DEMO_ZIP
from photos.crops import Edit, align, measure_template, paste, paste_mask
from photos.faces import Face, find_faces
from photos.geometry import displace, quarter_turns_back, similarity, transform
from utils import Template

TEMPLATE: Template = ((0.36, 0.45), (0.64, 0.45), (0.5, 0.6), (0.4, 0.72), (0.6, 0.72))
SQUARE = np.array(TEMPLATE) * 100


def rendered(number: int, size: int = 256) -> Image.Image:
    """A rendered face of size x size px."""
    with zipfile.ZipFile(DEMO_ZIP) as archive, archive.open(f"test/european/{number:04d}.jpg") as file:
        return Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def photograph(size: tuple[int, int], *places: tuple[int, int, int]) -> Image.Image:
    """An image of this width and height with rendered faces at (left, top, size) on a plain background."""
    image = Image.new("RGB", size, (120, 130, 110))
    for number, (left, top, side) in enumerate(places):
        image.paste(rendered(number, side), (left, top))
    return image


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random noise, (height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(60, 196, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()


def textured(size: tuple[int, int], *places: tuple[int, int, int]) -> np.ndarray:
    """Like `photograph`, on a background of clutter of all sizes; (height, width, 3) uint8."""
    random = np.random.default_rng(0)
    image = np.full((size[1], size[0], 3), 120, np.float32)
    for cell in (4, 16, 64, 256):
        coarse = random.normal(0, 18, (size[1] // cell + 1, size[0] // cell + 1, 3)).astype(np.float32)
        image += cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    result = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    for number, (left, top, side) in enumerate(places):
        result.paste(rendered(number, side), (left, top))
    return np.asarray(result)


def assert_found_once(faces: Sequence[Face], places: Sequence[tuple[int, int, int]]) -> None:
    """Each of the squares (left, top, side) holds the landmarks of exactly one face, and no face lies elsewhere."""
    assert len(faces) == len(places)
    for left, top, side in places:
        inside = [
            face
            for face in faces
            if ((face.landmarks > (left, top)) & (face.landmarks < (left + side, top + side))).all()
        ]
        assert len(inside) == 1, f"a face of {side} px was found {len(inside)} times"


def face_at(scale: float, degrees: float, centre: tuple[float, float]) -> Face:
    """A face whose aligned 100 px crop lies in the photograph at `centre`, enlarged and turned."""
    angle = np.radians(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Face((SQUARE - 50) @ turn.T + centre, 1.0)


@pytest.mark.parametrize(
    "places", [(), ((100, 60, 256),), ((20, 20, 200), (260, 100, 160), (480, 40, 240))], ids=["none", "one", "three"]
)
def test_every_face_is_found_once(places: tuple[tuple[int, int, int], ...]) -> None:
    faces = find_faces(np.asarray(photograph((760, 400), *places)))
    assert len(faces) == len(places)
    for face in faces:
        assert any(left < x < left + side and top < y < top + side for left, top, side in places
                   for x, y in [face.landmarks.mean(axis=0)])  # fmt: skip
    assert [face.eye_distance for face in faces] == sorted((face.eye_distance for face in faces), reverse=True)


@pytest.mark.parametrize("degrees", range(0, 360, 30))
def test_a_face_turned_by_any_angle_has_the_same_landmarks(degrees: int) -> None:
    upright = photograph((500, 500), (122, 122, 256))
    (expected,) = find_faces(np.asarray(upright))
    turned = upright.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(120, 130, 110))
    (found,) = find_faces(np.asarray(turned))
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned_back = (found.landmarks - 250) @ rotation.T + 250
    assert np.linalg.norm(turned_back - expected.landmarks, axis=1).mean() < 0.1 * expected.eye_distance


def test_a_face_that_fills_the_image_is_found() -> None:
    assert len(find_faces(np.asarray(rendered(3).crop((60, 70, 200, 230))))) == 1


def test_a_face_cut_off_by_the_border_is_found() -> None:
    (face,) = find_faces(np.asarray(photograph((400, 300), (-60, 40, 256))))
    assert face.landmarks[:, 0].min() > -20


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (15, 15), (16, 16), (17, 40)])
def test_no_face_is_found_in_tiny_images(size: tuple[int, int]) -> None:
    assert find_faces(np.asarray(photograph(size))) == []


def test_no_face_is_found_in_small_images_of_noise() -> None:
    """Without padding, OpenCV's detector finds faces of 1e30 px in some 32 px images that follow larger ones."""
    for seed in range(400):
        side = (32, 100, 20, 256)[seed % 4]
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        assert find_faces(np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))) == []


def test_landmarks_are_stable_when_the_image_shifts() -> None:
    image = photograph((460, 460), (100, 100, 256))
    found = []
    for shift in range(4):
        (face,) = find_faces(np.asarray(image.crop((shift, 3 - shift, 450, 450))))
        found.append(face.landmarks + np.array([shift, 3 - shift]))
    assert np.std(found, axis=0).mean() < 0.03 * face.eye_distance


def test_similarity_recovers_a_known_transform() -> None:
    face = face_at(2.5, 33, (70, 90))
    matrix = similarity(SQUARE, face.landmarks)
    assert np.allclose(transform(matrix, SQUARE), face.landmarks)
    assert np.isclose(np.hypot(*matrix[:2, 0]), 2.5)
    assert np.isclose(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])), 33)


def test_no_other_similarity_has_a_smaller_squared_error() -> None:
    random = np.random.default_rng(0)
    target = SQUARE + random.normal(0, 5, SQUARE.shape)
    best = similarity(SQUARE, target)
    error = np.square(transform(best, SQUARE) - target).sum()
    for _ in range(100):
        other = best.copy()
        other[:2, 2] += random.normal(0, 0.5, 2)
        other[:2, :2] @= np.array([[1, -1], [1, 1]]) * random.normal(0, 0.01) + np.eye(2)
        assert np.square(transform(other, SQUARE) - target).sum() >= error


def test_align_puts_the_landmarks_where_the_template_has_them() -> None:
    image = photograph((900, 700), (200, 100, 512)).rotate(20, Image.Resampling.BICUBIC)
    (face,) = find_faces(np.asarray(image))
    crop = align(np.asarray(image), face, TEMPLATE, 200)
    assert crop.shape == (200, 200, 3)
    (found,) = find_faces(crop)
    assert np.linalg.norm(found.landmarks / 200 - TEMPLATE, axis=1).mean() < 0.03


def test_align_does_not_alias() -> None:
    board = np.indices((1600, 1600)).sum(axis=0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    for degrees in (0, 30):
        crop = align(image, face_at(8, degrees, (800, 800)), TEMPLATE, 100)[10:-10, 10:-10]
        assert np.abs(crop.astype(int) - 127).max() <= 8


@pytest.mark.parametrize("scale", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("degrees", [0, 25, 180])
def test_pasting_an_unchanged_crop_changes_no_pixel(scale: float, degrees: float) -> None:
    image = noise(600, 700)
    face = face_at(scale, degrees, (350, 300))
    crop = align(image, face, TEMPLATE, 100)
    pasted = image.copy()
    paste(pasted, face, template=TEMPLATE, edit=Edit(crop, crop))
    assert (pasted == image).all()


@pytest.mark.parametrize("scale", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("degrees", [0, 25, 180])
def test_a_change_is_pasted_into_the_face_and_nowhere_else(scale: float, degrees: float) -> None:
    image = noise(600, 700)
    face = face_at(scale, degrees, (350.5, 300.5))
    crop = align(image, face, TEMPLATE, 100)
    pasted = image.copy()
    paste(pasted, face, template=TEMPLATE, edit=Edit(crop, crop.astype(np.float32) + 10))
    change = pasted.astype(int) - image
    y, x = np.indices((600, 700)) + 0.5
    in_crop = transform(np.linalg.inv(similarity(SQUARE, face.landmarks)), np.stack([x.ravel(), y.ravel()], axis=1))
    eyes, mouth = SQUARE[:2].mean(axis=0), SQUARE[3:].mean(axis=0)
    sizes = [np.linalg.norm(SQUARE[1] - SQUARE[0]), np.linalg.norm(mouth - eyes)]  # TEMPLATE's face is upright
    radius = np.hypot(*((in_crop - (0.6 * eyes + 0.4 * mouth)) / sizes).T).reshape(600, 700)
    assert np.abs(change[radius < 0.75] - 10).max() <= 1
    assert (change[radius > 1.5] == 0).all()
    assert change.min() >= 0
    steepest = np.abs(np.diff(change[300].astype(int), axis=0)).max()
    assert steepest <= max(2, round(3 / scale)), "the change ends at an edge"


def test_a_large_face_keeps_detail_that_its_crop_cannot_hold() -> None:
    image = noise(900, 900)
    image[::2] += 20  # The crop cannot resolve stripes of one pixel.
    face = face_at(8, 0, (450, 450))
    crop = align(image, face, TEMPLATE, 100)
    pasted = image.copy()
    paste(pasted, face, template=TEMPLATE, edit=Edit(crop, crop.astype(np.float32) - 15))
    assert (np.diff(pasted[400:500, 450].astype(int), axis=0)[::2] < -10).all()


def test_the_detail_of_what_was_there_goes_with_a_local_change_and_stays_with_one_of_the_whole_face() -> None:
    image = np.full((900, 900, 3), 60, np.uint8)
    image[::2] += 40  # A brow, say, whose hairs the crop cannot resolve.
    face = face_at(8, 0, (450, 450))
    crop = align(image, face, TEMPLATE, 100)
    for half_height, contrast in ((50, 40), (3, 0)):
        after = crop.astype(np.float32)
        after[50 - half_height : 50 + half_height] += 120
        pasted = image.copy()
        paste(pasted, face, template=TEMPLATE, edit=Edit(crop, after))
        rows = pasted[440:460, 450, 0].astype(int)
        assert np.abs(np.abs(np.diff(rows)) - contrast).max() <= 4
        assert rows.mean() == pytest.approx(200, abs=3)


@pytest.mark.parametrize(("scale", "degrees"), [(1, 0), (4, 0), (4, 90), (2, 30)])
def test_what_a_generator_moves_is_moved_in_the_photograph_itself(scale: float, degrees: float) -> None:
    """So a large face stays as sharp as it was: a moved brow is not drawn again at the crop's resolution."""
    image = cv2.GaussianBlur(noise(600, 700), (0, 0), 1.5)
    face = face_at(scale, degrees, (350, 300))
    crop = align(image, face, TEMPLATE, 100)
    pasted = image.copy()
    shift = np.zeros((100, 100, 2), np.float32)
    shift[..., 0], shift[..., 1] = 0.09, -0.05
    paste(pasted, face, template=TEMPLATE, edit=Edit(crop, crop, shift))
    along, down = np.deg2rad(degrees), np.deg2rad(degrees + 90)
    x, y = (
        100 * scale * (0.09 * np.array([np.cos(along), np.sin(along)]) - 0.05 * np.array([np.cos(down), np.sin(down)]))
    )
    expected = cv2.warpAffine(image, np.array([[1, 0, -x], [0, 1, -y]]), (700, 600), flags=cv2.INTER_CUBIC)
    middle = np.s_[int(300 - 8 * scale) : int(300 + 8 * scale), int(350 - 8 * scale) : int(350 + 8 * scale)]
    assert np.abs(pasted[middle].astype(int) - expected[middle]).max() <= 3
    assert np.abs(pasted[middle].astype(int) - image[middle]).max() > 15
    assert (pasted[:5] == image[:5]).all()


@pytest.mark.parametrize("shape", [(50, 40000), (40000, 50), (3, 3)])
def test_images_of_any_size_can_be_displaced(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    distance = np.full((*shape, 2), (2, -1), np.float32)
    rows, columns = (np.arange(shape[0]) - 1).clip(0), (np.arange(shape[1]) + 2).clip(max=shape[1] - 1)
    assert (displace(image, distance) == image[rows][:, columns]).all()
    assert (displace(image, distance[:2], first_row=1) == image[rows[1:3]][:, columns]).all()


@pytest.mark.parametrize("centre", [(0, 0), (20, 590), (699, 300), (-500, -500)])
def test_only_the_part_of_a_face_inside_the_image_is_pasted(centre: tuple[int, int]) -> None:
    image = noise(600, 700)
    face = face_at(2, 10, centre)
    crop = align(image, face, TEMPLATE, 100)
    pasted = image.copy()
    paste(pasted, face, template=TEMPLATE, edit=Edit(crop, crop.astype(np.float32) + 10))
    assert pasted.shape == image.shape
    assert (pasted.astype(int) - image).max() == (10 if min(centre) > -100 else 0)


def test_the_mask_holds_the_features_of_the_face_and_neither_the_border_nor_the_corners() -> None:
    mask = paste_mask(64, TEMPLATE)
    columns, rows = (np.array(TEMPLATE) * 64).astype(int).T
    assert (mask[rows, columns] == 1).all()
    assert max(mask[0].max(), mask[:, 0].max(), mask[-1].max(), mask[:, -1].max()) == 0
    assert mask[:12].max() < 0.05  # hair, far above the eyes
    assert np.abs(np.diff(mask, axis=0)).max() < 0.25
    assert np.allclose(mask, mask[:, ::-1])


def test_the_mask_turns_with_the_face_and_stays_off_the_border_where_faces_fill_the_crop() -> None:
    turned = tuple((1 - y, x) for x, y in TEMPLATE)  # a quarter turn clockwise
    assert np.allclose(paste_mask(64, turned), np.rot90(paste_mask(64, TEMPLATE), -1), atol=1e-4)
    large = tuple((0.5 + 3 * (x - 0.5), 0.5 + 3 * (y - 0.58)) for x, y in TEMPLATE)
    mask = paste_mask(64, large)
    assert mask[8:56, 8:56].min() == 1
    assert max(mask[0].max(), mask[:, 0].max(), mask[-1].max(), mask[:, -1].max()) == 0


def test_a_face_in_a_large_photograph_is_found() -> None:
    image = np.asarray(photograph((6000, 4000), (2000, 1000, 1800)))
    (face,) = find_faces(image)
    assert 300 < face.eye_distance < 900


def test_faces_of_all_sizes_in_a_large_photograph_are_found_once() -> None:
    places = [(300, 200, 70), (900, 250, 80), (3700, 2700, 100), (1500, 300, 150), (2200, 200, 300), (1200, 900, 1600)]
    assert_found_once(find_faces(textured((4000, 3000), *places)), places)


def test_faces_of_all_sizes_in_a_panorama_are_found_once() -> None:
    places = [(200, 100, 80), (1500, 800, 100), (3000, 300, 150), (4500, 200, 250), (5500, 100, 500), (7000, 50, 900)]
    assert_found_once(find_faces(textured((9000, 1000), *places)), places)


@pytest.mark.parametrize("quarter_turns", range(4))
def test_small_faces_are_found_in_a_large_photograph_that_is_turned(quarter_turns: int) -> None:
    places = [(200 + 600 * i, 300 + 100 * i, 110) for i in range(4)]
    faces = find_faces(np.rot90(textured((2600, 1000), *places), quarter_turns))
    back = quarter_turns_back(quarter_turns, (1000, 2600))
    assert_found_once([Face(transform(back, face.landmarks), face.score) for face in faces], places)


def test_a_small_face_has_the_landmarks_that_it_has_in_a_small_photograph() -> None:
    image = textured((4000, 3000), (2500, 1200, 120))
    (large,) = find_faces(image)
    (small,) = find_faces(image[1000:1500, 2300:2900])
    assert np.linalg.norm(large.landmarks - (2300, 1000) - small.landmarks, axis=1).max() < 0.04 * small.eye_distance


def test_no_face_is_found_in_a_large_photograph_without_any() -> None:
    assert find_faces(textured((3200, 2400))) == []
    assert find_faces(np.tile(np.asarray(photograph((300, 200))), (10, 10, 1))) == []


@pytest.mark.parametrize(("size", "longest"), [((1920, 1080), 640), ((4000, 3000), 2000), ((16000, 1000), 8000)])
def test_only_large_photographs_are_searched_in_fine_copies(
    size: tuple[int, int], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of most videos are not, which would take several times as long."""
    sides: list[int] = []

    def no_faces(image: np.ndarray, min_score: float) -> list[Face]:
        sides.extend(image.shape[:2])
        return []

    monkeypatch.setattr("photos.faces._detect", no_faces)
    assert find_faces(np.zeros((size[1], size[0], 3), np.uint8)) == []
    assert max(sides) == longest


def test_the_measured_template_matches_the_landmarks_of_the_crops() -> None:
    photos = [np.asarray(photograph((500, 500), (122, 122, 256)).rotate(angle)) for angle in (-10, 0, 10)]
    crops = []
    for photo in photos:
        (face,) = find_faces(photo)
        crops.append(align(photo, face, TEMPLATE, 160))
    measured = measure_template([*crops, noise(160, 160)])
    assert measured is not None
    assert np.linalg.norm(np.array(measured) - TEMPLATE, axis=1).max() < 0.04


def test_images_without_faces_give_no_template() -> None:
    assert measure_template([noise(64, 64, seed) for seed in range(3)]) is None
    assert measure_template([]) is None
    assert measure_template([np.asarray(rendered(1)), *(noise(64, 64, seed) for seed in range(3))]) is None
