# Runtime image: the engines, quantrim without training, and the native runner.
#   docker build -t quantrim . && docker run --rm -v "$PWD:/data" quantrim bench model.int8.onnx
FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/quantrim
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY quantrim ./quantrim
COPY configs ./configs
COPY examples ./examples
COPY cpp ./cpp
RUN /opt/quantrim/bin/pip install --no-cache-dir .
# The runner links the libraries of the venv, which stands at the same place in the image below.
RUN cmake -S cpp -B /src/native -DCMAKE_BUILD_TYPE=Release -DPython3_EXECUTABLE=/opt/quantrim/bin/python \
    && cmake --build /src/native -j 2 \
    && cp /src/native/quantrim_bench /opt/quantrim/bin/
# Plugins of OpenVINO for devices that a CPU image has not, and what only installing needs.
RUN site=$(/opt/quantrim/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && rm -f "$site"/openvino/libs/libopenvino_intel_gpu_plugin* "$site"/openvino/libs/libopenvino_intel_npu_* \
    && rm -rf "$site"/pip "$site"/pip-* \
    && find /opt/quantrim -name __pycache__ -prune -exec rm -rf {} +

FROM python:3.12-slim-bookworm
COPY --from=build /opt/quantrim /opt/quantrim
ENV PATH=/opt/quantrim/bin:$PATH PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 quantrim
USER quantrim
WORKDIR /data
ENTRYPOINT ["quantrim"]
CMD ["doctor"]
