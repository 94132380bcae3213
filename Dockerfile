# The product with JAX for NVIDIA GPUs; see docs/install.md.
#
#     docker build -t videogen_jax .
#     docker run --rm --gpus all -v "$PWD/runs:/app/runs" videogen_jax train --config=quickstart --workdir=runs/quickstart
#
# The wheels of jax[cuda12] bring CUDA; the host has the driver. For CPUs alone: --build-arg JAX=jax==0.10.2; for CUDA 13:
# --build-arg "JAX=jax[cuda13]==0.10.2"
FROM python:3.11-slim

WORKDIR /app

# First what changes seldom, so that a change of the code does not install the packages again.
COPY requirements.txt ./
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
ARG JAX=jax[cuda12]==0.10.2
RUN pip install --no-cache-dir "${JAX}"

COPY pyproject.toml README.md LICENSE launch.py ./
COPY configs configs
COPY videogen_jax videogen_jax
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .

VOLUME /app/runs
ENTRYPOINT ["videogen"]
CMD ["--help"]
