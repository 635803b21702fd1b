"""The peer of `train_step`: MTM written plainly on timm's blocks, as the paper's section 3.2 reads.

Same parameters under the same names as `trainers.models.mtm.MTM`, same arithmetic; patches are
dropped, masked and put back by boolean indexing, as published code of this kind does.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.models.mtm import MTMConfig


class PlainMTM(nn.Module):
    """`forward` gives () the mean loss of the rows."""

    pos_embed: Tensor

    def __init__(self, config: MTMConfig) -> None:
        super().__init__()
        self.config = config
        c, e = config.encoder, config.decoder
        self.token_emb = nn.Module()
        self.token_emb.word_embeddings = nn.Embedding(config.codes, config.channels)
        self.token_emb.LayerNorm = nn.LayerNorm(config.channels, eps=1e-6)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(config.channels, c.dim, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, c.dim))
        self.mask_token_label = nn.Parameter(torch.empty(1, 1, c.dim))
        self.blocks = nn.Sequential(
            *(Block(c.dim, c.heads, c.mlp_ratio, qkv_bias=True) for _ in range(c.depth))
        )
        self.norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.decoder_embed = nn.Linear(c.dim, e.dim)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, 1 + config.patch_count, e.dim))
        rate = config.decoder_dropout
        self.decoder_blocks = nn.Sequential(
            *(
                Block(e.dim, e.heads, e.mlp_ratio, qkv_bias=True, proj_drop=rate, attn_drop=rate)
                for _ in range(e.depth)
            )
        )
        self.decoder_norm = nn.LayerNorm(e.dim, eps=1e-6)
        self.mlm_layer = nn.Module()
        self.mlm_layer.fc = nn.Linear(e.dim, config.patch**2 * config.channels)
        self.mlm_layer.ln = nn.LayerNorm(config.channels)
        self.mlm_layer.bias = nn.Parameter(torch.empty(1, 1, config.codes))
        self.register_buffer("pos_embed", torch.empty(1, 1 + config.patch_count, c.dim))
        self.register_buffer("decoder_pos_embed", torch.empty(1, 1 + config.patch_count, e.dim))

    def forward(self, ids: Tensor, drop: Tensor, mask: Tensor) -> Tensor:
        config = self.config
        n, p = len(ids), config.patch
        vectors: Tensor = self.token_emb.LayerNorm(self.token_emb.word_embeddings(ids))
        vectors = F.dropout(vectors, config.token_dropout, self.training)
        x: Tensor = self.patch_embed.proj(vectors.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.where(mask[..., None], self.mask_token_label, x)
        x = x + self.pos_embed[:, 1:]
        x = x[~drop].reshape(n, -1, x.shape[2])
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(n, -1, -1)
        x = self.decoder_embed(self.norm(self.blocks(torch.cat([cls, x], dim=1))))

        whole = x[:, :1].repeat(1, drop.shape[1], 1)
        whole[~drop] = x[:, 1:].flatten(0, 1)
        whole = torch.where(mask[..., None], x[:, :1], whole)
        x = torch.cat([x[:, :1], whole], dim=1) + self.decoder_pos_embed_learned
        x = self.decoder_norm(self.decoder_blocks(x))[:, 1:]

        rows, columns = config.patches
        hidden = self.mlm_layer.fc(x).reshape(n, rows, columns, p, p, config.channels)
        hidden = hidden.permute(0, 1, 3, 2, 4, 5).reshape(n, -1, config.channels)
        hidden = self.mlm_layer.ln(F.gelu(hidden))
        codes = self.token_emb.word_embeddings.weight.detach()
        logits = hidden @ codes.T + self.mlm_layer.bias
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
        loss = loss.reshape(n, rows, p, columns, p).mean(dim=(2, 4)).flatten(1)
        return ((loss * mask).sum(dim=1) / mask.sum(dim=1)).mean()
