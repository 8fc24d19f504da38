# The API (target `api`, the default) and Flower (target `monitor`). No torch in either.
#   docker build -f deploy/producer.Dockerfile --target api -t pixelkiln-producer .
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS libraries
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/pixelkiln
ENV PATH=/opt/pixelkiln/bin:$PATH
WORKDIR /src
COPY deploy/wheels/ /wheels/
COPY pyproject.toml constraints.txt deploy/requirements.py ./
RUN python requirements.py producer > requirements.txt \
    && pip install --find-links /wheels -r requirements.txt -c constraints.txt

FROM libraries AS libraries-monitor
RUN python requirements.py monitor > monitor.txt \
    && pip install --find-links /wheels -r monitor.txt -c constraints.txt

FROM libraries AS package
COPY README.md LICENSE ./
COPY shared/ shared/
COPY producer/ producer/
COPY worker/ worker/
RUN pip wheel --no-deps --wheel-dir /dist .

FROM ${PYTHON_IMAGE} AS base
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/pixelkiln pixelkiln
ENV PATH=/opt/pixelkiln/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/pixelkiln

# The libraries are a layer of their own: a change of our code ships only our code.
FROM base AS monitor
COPY --from=libraries-monitor /opt/pixelkiln /opt/pixelkiln
RUN --mount=type=bind,from=package,source=/dist,target=/dist pip install --no-cache-dir --no-index --no-deps /dist/*.whl
USER pixelkiln
EXPOSE 5555
CMD ["python", "-m", "pixelkiln.monitor", "--host", "0.0.0.0"]

FROM base AS api
COPY --from=libraries /opt/pixelkiln /opt/pixelkiln
RUN --mount=type=bind,from=package,source=/dist,target=/dist pip install --no-cache-dir --no-index --no-deps /dist/*.whl
USER pixelkiln
EXPOSE 8700
CMD ["python", "-m", "pixelkiln.api"]
