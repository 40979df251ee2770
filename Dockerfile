# The page of app.py, see docs/app.md. The default is PyTorch for the CPU; for an NVIDIA GPU build with
#   --build-arg TORCH_INDEX=https://pypi.org/simple
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
COPY requirements.txt requirements-extra.txt ./
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX" \
    && grep -E '^(gradio|pillow-heif)' requirements-extra.txt > requirements-page.txt \
    && pip install --no-cache-dir -r requirements.txt -r requirements-page.txt
COPY . .
RUN useradd --create-home page
USER page
EXPOSE 7860
CMD ["python", "app.py", "--host", "0.0.0.0", "--port", "7860"]
