"""Imports TFLite encoders: validates them, runs them as a phone would, and commits them as an encoder bundle."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import TFLITE_FILES, EncoderInfo, InputKind
from searchforge.artifacts.litert import embed_image, open_interpreter
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import JobError, UsageError
from searchforge.hashing import content_id, sha256_bytes, sha256_file
from searchforge.native_output import discarded_stderr
from searchforge.preprocessing import Preprocessing
from searchforge.processes import isolated, task_library
from trainer.importing import foreign_model
from trainer.importing.requirements import EncoderFiles, chosen_output, image_preprocessing, text_request, tokenizer

logger = logging.getLogger(__name__)

VERSION = 1
"""Part of every imported encoder's id; raise it whenever the same files would give another bundle."""

PROBE_TEXTS = (
    "a",
    "a dog on a beach",
    "two children playing in the snow",
    "an old car in front of a red house",
    "people at a table with food",
    "flowers",
    "a boat at sunset",
    "a man riding a bicycle down a street",
)
"""Texts that an encoder of texts must tell apart."""

_PROBE_IMAGES = 8
_SAME = 0.9999
"""Cosine above which two embeddings count as equal."""

MIN_COSINE = 0.99
"""Smallest similarity of the embeddings of LiteRT and the Task Library."""

_UNIT = 1e-3
"""Largest difference of an embedding's length from 1 for which no normalisation is appended."""


def import_encoder(workspace: Workspace, files: EncoderFiles) -> EncoderInfo:
    """Commits an encoder bundle from TFLite files, or returns the existing one of the same files.

    Each file is rewritten to have one L2-normalised float32 output and complete metadata, and then run with the Task
    Library. Nothing is committed if that fails.

    Raises:
      UsageError: A file cannot be used; the message says why and what was expected.
    """
    if not (files.text or files.image):
        raise UsageError("no encoder was given; give a TFLite file of a text encoder, an image encoder, or both")
    if not files.text and (files.vocabulary or files.regex):
        raise UsageError("a vocabulary was given without a text encoder; give the text encoder, too")
    sources = files.by_kind
    for path in (*sources.values(), *filter(None, [files.vocabulary])):
        if not path.is_file():
            raise UsageError(f"{path} does not exist or is not a file")
    described = {kind: _describe(path) for kind, path in sources.items()}
    preprocessing = image_preprocessing(files, described["image"]) if "image" in described else _NO_IMAGES
    requests: dict[InputKind, dict[str, Any]] = {}
    if "text" in described:
        requests["text"] = text_request(files, described["text"])
    if files.image:
        output = chosen_output(files.image, described["image"], files.image_output, "--image-output")
        requests["image"] = {"do": "rewrite_image", "output": output, "preprocessing": preprocessing}
    with tempfile.TemporaryDirectory(prefix="searchforge-import-") as folder:
        probed: dict[InputKind, _Probed] = {}
        for kind, source in sources.items():
            logger.info(f"  running {source.name} with the Task Library")
            request = {**requests[kind], "model": str(source)}
            probed[kind] = _rewrite_and_probe(kind, request, Path(folder), Preprocessing.parse(preprocessing))
        dims = {kind: found.dim for kind, found in probed.items()}
        if len(set(dims.values())) > 1:
            raise UsageError(
                f"{files.text} embeds in {dims['text']} dimensions and {files.image} in {dims['image']}; expected "
                "encoders that embed into the same space"
            )
        return _commit(workspace, files, Path(folder), probed, described, preprocessing)


_NO_IMAGES = str(Preprocessing(224, 224))
"""Preprocessing string of a bundle that does not embed images."""


@dataclass(frozen=True)
class _Probed:
    """A rewritten encoder that the Task Library has run.

    Attributes:
      report: `inputs` and `ms`, the median milliseconds of an input on one thread; for images also `min_cosine`, the
        smallest similarity to the embeddings of LiteRT, which embeds the corpus.
    """

    file: Path
    dim: int
    report: dict[str, Any]


def _describe(path: Path) -> dict[str, Any]:
    described = isolated.call(foreign_model.MODULE, {"do": "describe", "model": str(path)})
    indexes = [name for name in described["files"] if name.endswith(".ldb")]
    if indexes:
        raise UsageError(f"{path.name} is a searcher with the index {indexes[0]}; give the encoder without an index")
    return described


def _rewrite_and_probe(kind: InputKind, request: dict[str, Any], folder: Path, preprocessing: Preprocessing) -> _Probed:
    """Writes the encoder of a bundle into `folder` and embeds probes with it.

    Raises:
      UsageError: The Task Library cannot run it, or its embeddings are useless.
    """
    source, target = Path(request["model"]).name, folder / TFLITE_FILES[kind]
    images = _probe_images(preprocessing)
    for normalize in (False, True):
        try:
            isolated.call(foreign_model.MODULE, {**request, "target": str(target), "normalize": normalize})
            if kind == "text":
                vectors, ms = task_library.embed_texts(target, PROBE_TEXTS)
            else:
                vectors, ms = task_library.embed_images(target, images)
        except JobError as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{source} cannot be used as a {kind} encoder: {reason}") from None
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        if not np.isfinite(lengths).all():
            raise UsageError(f"{source} embeds ordinary {kind}s as numbers that are not finite; give a working encoder")
        if not lengths.all():
            advice = ", and its own vocabulary and delimiters" if request.get("vocabulary") else ""
            raise UsageError(f"{source} embeds ordinary {kind}s as vectors of zeros; give a working encoder{advice}")
        if (np.abs(lengths - 1) <= _UNIT).all():
            break
    if (vectors @ vectors.T / np.outer(lengths, lengths)).min() > _SAME:
        raise UsageError(f"{source} embeds {len(vectors)} different {kind}s as the same vector; give a working encoder")
    report: dict[str, Any] = {"inputs": len(vectors), "ms": ms}
    if kind == "image":
        report["min_cosine"] = float((vectors * _embed_with_litert(target, images, preprocessing)).sum(1).min())
        if not report["min_cosine"] >= MIN_COSINE:
            raise UsageError(
                f"LiteRT and the Task Library embed the same image differently with {source} (cosine "
                f"{report['min_cosine']:.4f}, at least {MIN_COSINE} is required); convert the model without this kind "
                "of quantization"
            )
    return _Probed(target, vectors.shape[1], report)


def _embed_with_litert(
    model: Path, images: npt.NDArray[np.uint8], preprocessing: Preprocessing
) -> npt.NDArray[np.float32]:
    with discarded_stderr():  # the first interpreter of a process prints a notice
        interpreter = open_interpreter(model)
    return np.stack([embed_image(interpreter, preprocessing, image) for image in images])


def _probe_images(preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Returns images of smooth random colours, uint8 [n, height, width, 3]."""
    from PIL import Image

    random, size = np.random.default_rng(0), (preprocessing.width, preprocessing.height)
    coarse = random.integers(0, 256, (_PROBE_IMAGES, 5, 5, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in coarse])


def _commit(
    workspace: Workspace,
    files: EncoderFiles,
    folder: Path,
    probed: dict[InputKind, _Probed],
    described: dict[InputKind, dict[str, Any]],
    preprocessing: str,
) -> EncoderInfo:
    hashes = {found.file.name: sha256_file(found.file) for found in probed.values()}
    fingerprint = sha256_bytes("\n".join([preprocessing, *(hashes[name] for name in sorted(hashes))]).encode())
    stated = next((each["license"] for each in described.values() if each["license"]), "")
    license = stated if files.license is None else files.license
    id = content_id(["imported", VERSION, fingerprint, license])
    if workspace.committed("encoders", id):
        logger.info(f"encoder {id} of the same files already exists")
        return EncoderInfo.model_validate(workspace.marker("encoders", id))
    sources = files.by_kind
    report: dict[str, Any] = {
        "imported": {kind: {"file": path.name, "sha256": sha256_file(path)} for kind, path in sources.items()},
        "agreement": {kind: found.report for kind, found in probed.items()},
        "tflite_bytes": {found.file.name: found.file.stat().st_size for found in probed.values()},
    }
    tokens = described["text"]["inputs"][0] if "text" in described else None
    if tokens:
        report["tokenizer"] = tokenizer(files, described["text"])
    info = EncoderInfo(
        id=id,
        fingerprint=fingerprint,
        preprocessing=preprocessing,
        dim=next(iter(probed.values())).dim,
        image_tower=files.image.name if files.image else "",
        text_tower=files.text.name if files.text else "",
        sequence_length=tokens["shape"][-1] if tokens and tokens["type"] == "INT32" else 0,
        files=hashes,
        report=report,
        license=license,
    )
    with workspace.create("encoders", id) as staging:
        for found in probed.values():
            found.file.rename(staging.path / found.file.name)
        staging.commit(info.model_dump())
    return info
