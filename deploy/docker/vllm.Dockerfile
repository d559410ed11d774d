# vLLM's image with the daemon and the plugin: the same image for the daemon and for the workers, so that both have one toolchain.
#
#     make wheel
#     docker build -f deploy/docker/vllm.Dockerfile -t vllm-piecewised:0.26.0 .
ARG VLLM_IMAGE=vllm/vllm-openai:v0.26.0
FROM ${VLLM_IMAGE}
COPY target/wheels/piecewised-*.whl /tmp/
RUN pip install --no-cache-dir --no-deps /tmp/piecewised-*.whl && rm /tmp/piecewised-*.whl && piecewised --version
