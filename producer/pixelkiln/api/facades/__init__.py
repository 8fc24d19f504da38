"""The addresses that other services' clients call, on the same queue: OpenAI's and Hugging Face's."""
