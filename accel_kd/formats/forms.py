"""The forms by their names."""

from __future__ import annotations

from accel_kd.formats import onnx_fp32, onnx_int8, torch_forms, torchao_int8
from accel_kd.formats.base import Form, Limits

_SAME = Limits(min_agreement=1.0, max_relative_difference=1e-4, tie_margin=1e-3)
"""fp32 in another order of sums: the logits of MiniLM-L6 on CLINC150, which reach 13, then differ by 2e-5 at most and
3e-7 of their spread on average. No label may change but where two are as good as equal."""
_ONNX = ["onnx", "onnxscript", "onnxruntime"]

_PIPELINE = """from transformers import pipeline

classify = pipeline("text-classification", "FOLDER")
print(classify("a text"))"""

_SESSION = """import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
batch = tokenizer(["a text"], padding=True, truncation=True, return_tensors="np")
[logits] = session.run(["logits"], {entry.name: batch[entry.name] for entry in session.get_inputs()})"""

FORMS = {
    form.name: form
    for form in (
        Form("safetensors", [], torch_forms.write, torch_forms.open_eager, _SAME, _PIPELINE),
        Form(
            "torchao-int8",
            ["torchao"],
            torchao_int8.write,
            torchao_int8.open,
            # Measured with MiniLM-L6 on CLINC150: 0.9931 and 0.016.
            Limits(min_agreement=0.98, max_relative_difference=0.1),
            f"# with torchao installed\n{_PIPELINE}",
        ),
        Form("onnx", _ONNX, onnx_fp32.write, onnx_fp32.open, _SAME, _SESSION, "onnx"),
        Form(
            "onnx-int8",
            _ONNX,
            onnx_int8.write,
            onnx_fp32.open,
            # Measured likewise: 0.9822 and 0.032; with one scale a matrix, which is not good enough, 0.9651 and 0.072.
            Limits(min_agreement=0.97, max_relative_difference=0.1),
            _SESSION,
            "onnx",
        ),
    )
}
"""In the order in which help and tables name them."""
