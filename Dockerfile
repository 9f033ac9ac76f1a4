# syntax=docker/dockerfile:1
# Two images, both for the CPU: `docker build -t mint-compress .` compresses, `docker build --target verify -t
# mint-verify .` only checks and times what was made, without PyTorch. docs/container.md says how to run them.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY mint_compress mint_compress
COPY exporters exporters
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
# on x86-64 the package names onnxruntime-gpu, since pip cannot see whether there is a GPU; here there is none
RUN python > /wheels/requirements.txt <<END
import tomllib
for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    if not line.startswith("onnxruntime-gpu"):
        print("onnxruntime" if line.startswith("onnxruntime") else line)
END

FROM python:${PYTHON}-slim AS verify
# MORE: further packages, such as "openvino" where .xml files are to be checked
ARG MORE=""
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-compile click rich numpy onnxruntime ${MORE} \
    && pip install --no-cache-dir --no-compile --no-deps /wheels/*.whl
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["mint-compress"]
CMD ["verify", "--help"]

FROM python:${PYTHON}-slim AS compress
# MORE: further packages, such as "timm" or "openvino nncf"
ARG MORE=""
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-compile --index-url https://download.pytorch.org/whl/cpu torch torchvision \
    && pip install --no-cache-dir --no-compile -r /wheels/requirements.txt ${MORE} \
    && pip install --no-cache-dir --no-compile --no-deps /wheels/*.whl
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["mint-compress"]
CMD ["--help"]
