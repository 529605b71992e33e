# One image for the service and the pipelines; compose.yaml runs both.
FROM python:3.11-slim

# LightGBM and implicit need the OpenMP runtime.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY feastpack feastpack
COPY feature_repo feature_repo
COPY validation validation
COPY serving serving
COPY pipelines pipelines
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && useradd --create-home feastrank && mkdir /state && chown feastrank /state

USER feastrank
ENV FEASTRANK_HOME=/state FEASTRANK_HOST=0.0.0.0 OMP_NUM_THREADS=1
VOLUME /state
EXPOSE 8000
# SIGTERM ends the service once the requests under way are answered.
STOPSIGNAL SIGTERM
ENTRYPOINT ["feastrank"]
CMD ["serve", "--wait-for-bundle"]
