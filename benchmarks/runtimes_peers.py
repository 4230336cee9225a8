"""Run exported policies in one runtime; ``runtimes.py`` calls it in an environment that has these.

python runtimes_peers.py PEER FOLDER...    # each with policy.onnx and steps.npz

A JSON line for each folder: the largest difference from the policy, or why there is none.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]


def with_onnxruntime(file: Path, model: Any) -> Run:
    """ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def with_openvino(file: Path, model: Any) -> Run:
    """OpenVINO, on a CPU in float32."""
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.name for output in model.graph.output]

    def run(feed: Arrays) -> Arrays:
        found = compiled(dict(feed))
        return {name: np.array(found[name]) for name in names}

    return run


def with_tract(file: Path, model: Any) -> Run:
    """tract, the engine in Rust."""
    import tract

    runnable = tract.onnx().load(str(file)).into_model().into_runnable()
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))

    def run(feed: Arrays) -> Arrays:
        found = runnable.run([np.ascontiguousarray(feed[name]) for name in inputs])
        return {name: value.to_numpy() for name, value in zip(outputs, found, strict=True)}

    return run


def with_opencv(file: Path, model: Any) -> Run:
    """OpenCV's dnn module."""
    import cv2

    net = cv2.dnn.readNetFromONNX(str(file))
    names = [output.name for output in model.graph.output]

    def run(feed: Arrays) -> Arrays:
        for name, array in feed.items():
            net.setInput(array, name)
        return dict(zip(names, net.forward(names), strict=True))

    return run


def with_onnx2torch(file: Path, model: Any) -> Run:
    """onnx2torch, back to a module of PyTorch."""
    import torch

    # It imports torchvision for operators that no policy has, and wheels of that need a torch with CUDA.
    ops: Any = types.ModuleType("torchvision.ops")
    ops.roi_align = None
    sys.modules |= {"torchvision": types.ModuleType("torchvision"), "torchvision.ops": ops}
    import onnx2torch

    module = onnx2torch.convert(model).eval()
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))

    def run(feed: Arrays) -> Arrays:
        with torch.no_grad():
            found = module(*(torch.from_numpy(feed[name]) for name in inputs))
        found = found if isinstance(found, (tuple, list)) else (found,)
        return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}

    return run


def with_ncnn(file: Path, model: Any) -> Run:
    """ncnn, by way of pnnx, in float32; it has no dimension for a batch of one."""
    import ncnn

    # pnnx writes beside its input, and to the working folder.
    tool = Path(sys.executable).with_name("pnnx")
    sizes = ",".join(f"[{','.join(str(n.dim_value) for n in v.type.tensor_type.shape.dim)}]" for v in model.graph.input)
    types_of = {"uint8": "u8"}
    kinds = [onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in model.graph.input]
    shapes = ",".join(
        f"{size}{types_of.get(k, 'f32')}" for size, k in zip(sizes.replace("],[", "] [").split(), kinds, strict=True)
    )
    done = subprocess.run(
        [str(tool), file.name, f"inputshape={shapes}", "fp16=0"], cwd=file.parent, capture_output=True, text=True
    )
    stem = file.parent / file.stem
    if not stem.with_suffix(".ncnn.param").exists():
        raise RuntimeError(f"pnnx: {(done.stderr.strip().splitlines() or ['nothing written'])[-1]}")
    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, option, False)
    if net.load_param(str(stem.with_suffix(".ncnn.param"))) or net.load_model(str(stem.with_suffix(".ncnn.bin"))):
        raise RuntimeError("ncnn cannot load what pnnx wrote")
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    shape_of = {v.name: [n.dim_value for n in v.type.tensor_type.shape.dim] for v in model.graph.output}

    def run(feed: Arrays) -> Arrays:
        with net.create_extractor() as extractor:
            for i, name in enumerate(inputs):
                x = feed[name].astype(np.float32)
                x = x[:, 0] if name.endswith("_in") else x[0]
                extractor.input(f"in{i}", ncnn.Mat(np.ascontiguousarray(x)).clone())
            found = {}
            for i, name in enumerate(outputs):
                code, value = extractor.extract(f"out{i}")
                if code:
                    raise RuntimeError(f"ncnn gives no {name} ({code})")
                found[name] = np.array(value).reshape(shape_of[name])
        return found

    return run


def with_emx(file: Path, model: Any) -> Run:
    """emx-onnx-cgen, to C, compiled by gcc."""
    tool = Path(sys.executable).with_name("emx-onnx-cgen")
    source, library = file.with_suffix(".c"), file.with_suffix(".so")
    for command in (
        [str(tool), "compile", str(file), str(source), "--model-name", "model"],
        ["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    call = ctypes.CDLL(str(library)).model
    inputs = [value.name for value in model.graph.input]
    outputs = {
        value.name: (
            [n.dim_value for n in value.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in model.graph.output
    }

    def run(feed: Arrays) -> Arrays:
        found = {name: np.zeros(shape, kind) for name, (shape, kind) in outputs.items()}
        given = [np.ascontiguousarray(feed[name]) for name in inputs]
        call(*(array.ctypes.data_as(ctypes.c_void_p) for array in (*given, *found.values())))
        return found

    return run


PEERS: dict[str, Callable[[Path, Any], Run]] = {
    "onnxruntime": with_onnxruntime,
    "openvino": with_openvino,
    "tract": with_tract,
    "opencv": with_opencv,
    "onnx2torch": with_onnx2torch,
    "ncnn": with_ncnn,
    "emx-onnx-cgen": with_emx,
}


def largest_difference(run: Run, steps: Arrays) -> float:
    """Of all outputs over all steps, each with the file's own state; choices have to be the same.

    Raises:
        ValueError: a choice is another, or an output has another number of values.
    """
    names = [name for name in steps if name in ("actions", "risk", "h_out", "c_out")]
    inputs = [name for name in steps if name not in names]
    state = {name: steps[name][0] for name in inputs if name.endswith("_in")}
    worst = 0.0
    for t in range(len(steps["actions"])):
        found = run({name: steps[name][t] for name in inputs} | state)
        for name in names:
            wanted, got = steps[name][t], np.asarray(found[name])
            if wanted.size != got.size:
                raise ValueError(f"{name} has {got.size} values, not {wanted.size}")
            difference = float(np.abs(got.reshape(wanted.shape).astype(np.float64) - wanted).max())
            if wanted.dtype.kind == "i" and difference:
                raise ValueError(f"another choice in step {t}")
            worst = max(worst, difference if np.isfinite(difference) else np.inf)
        state = {name: np.asarray(found[name.replace("_in", "_out")]).reshape(state[name].shape) for name in state}
    return worst


def main() -> None:
    """Try one runtime."""
    peer, *folders = sys.argv[1:]
    for folder in map(Path, folders):
        file = folder / "policy.onnx"
        try:
            with np.load(folder / "steps.npz") as arrays:
                steps = dict(arrays)
            result: dict[str, Any] = {"difference": largest_difference(PEERS[peer](file, onnx.load(str(file))), steps)}
        except Exception as error:  # whatever a runtime raises is what is to be told
            result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
