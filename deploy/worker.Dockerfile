# The worker. TORCH_BUILD=cpu (the default) takes torch from deploy/wheels or from PIP_EXTRA_INDEX_URL when they hold
# a CPU build; TORCH_BUILD=cuda takes the package index's own. docs/deployment.md says more.
#   docker build -f deploy/worker.Dockerfile -t pixelkiln-worker .
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS libraries
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/pixelkiln
ENV PATH=/opt/pixelkiln/bin:$PATH
WORKDIR /src
COPY deploy/wheels/ /wheels/
COPY pyproject.toml constraints.txt deploy/requirements.py ./
ARG TORCH_BUILD=cpu
ARG PIP_EXTRA_INDEX_URL=
RUN if [ "$TORCH_BUILD" = cpu ]; then links="--find-links /wheels"; else links=; unset PIP_EXTRA_INDEX_URL; fi \
    && python requirements.py worker > requirements.txt \
    && pip install $links -r requirements.txt -c constraints.txt

FROM libraries AS package
COPY README.md LICENSE ./
COPY shared/ shared/
COPY producer/ producer/
COPY worker/ worker/
RUN pip wheel --no-deps --wheel-dir /dist .

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/pixelkiln pixelkiln
ENV PATH=/opt/pixelkiln/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/pixelkiln
# The libraries are a layer of their own: a change of our code ships only our code.
COPY --from=libraries /opt/pixelkiln /opt/pixelkiln
RUN --mount=type=bind,from=package,source=/dist,target=/dist pip install --no-cache-dir --no-index --no-deps /dist/*.whl
USER pixelkiln
# Weights from a hub or a bucket are kept here; a volume mounted on it takes over the owner.
RUN mkdir .cache
CMD ["python", "-m", "pixelkiln_worker"]
