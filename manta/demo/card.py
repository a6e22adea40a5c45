"""Scores a checkpoint on the held-out files and writes its model card."""
import torch
from transformers import MixtralForCausalLM
CHUNK = 1024
def loss_per_token(model: MixtralForCausalLM, documents: list[list[int]]) -> float:
    """Mean negative log-likelihood, in nats, of every token after its document's first; each chunk of 1024 alone."""
    was_training = model.training
    total, count = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for document in documents:
            for start in range(0, len(document), CHUNK):
                ids_1L = torch.tensor([document[max(start - 1, 0) : start + CHUNK]])
                if ids_1L.shape[1] < 2:
                    continue
                logits_LV = model(input_ids=ids_1L, output_router_logits=False).logits[0, :-1].float()
                total += float(torch.nn.functional.cross_entropy(logits_LV, ids_1L[0, 1:], reduction="sum"))
                count += ids_1L.shape[1] - 1
    model.train(was_training)
    return total / count
