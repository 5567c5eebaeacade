"""The arrays of a JAX port, by their paths, of the weights in an official torch state dict."""

import numpy as np

# What a port calls DiT's parts: flax's compact modules (kvfrans), NNX (diffuse_nnx), and modules
# that imitate torch's (MeanFlow's). {} is the number of a block.
STYLES = {
    "kvfrans": {
        "x_embedder.proj": "params/PatchEmbed_0/Conv_0",
        "t_embedder.mlp.0": "params/TimestepEmbedder_0/Dense_0",
        "t_embedder.mlp.2": "params/TimestepEmbedder_0/Dense_1",
        "y_embedder.embedding_table": "params/LabelEmbedder_0/Embed_0",
        "attn": "params/DiTBlock_{}/MultiHeadDotProductAttention_0",
        "mlp.fc1": "params/DiTBlock_{}/MlpBlock_0/Dense_0",
        "mlp.fc2": "params/DiTBlock_{}/MlpBlock_0/Dense_1",
        "adaLN_modulation.1": "params/DiTBlock_{}/Dense_0",
        "final_layer.adaLN_modulation.1": "params/FinalLayer_0/Dense_0",
        "final_layer.linear": "params/FinalLayer_0/Dense_1",
        "pos_embed": "params/pos_embed",
        "": "{}",
    },
    "diffuse_nnx": {
        "x_embedder.proj": "x_proj",
        "t_embedder.mlp.0": "t_embedder/mlp/layers/0",
        "t_embedder.mlp.2": "t_embedder/mlp/layers/2",
        "y_embedder.embedding_table": "y_embedder/embedding_table",
        "attn": "blocks/{}/attn",
        "mlp.fc1": "blocks/{}/mlp/linear1",
        "mlp.fc2": "blocks/{}/mlp/linear2",
        "adaLN_modulation.1": "blocks/{}/adaLN_mod/layers/1",
        "final_layer.adaLN_modulation.1": "final_layer/adaLN_mod/layers/1",
        "final_layer.linear": "final_layer/linear",
        "pos_embed": "x_embedder/pe",
        "": "{}/value",
    },
    "torch-like": {
        "x_embedder.proj": "['params']['x_embedder']['proj']",
        "t_embedder.mlp.0": "['params']['t_embedder']['mlp']['layers_0']['_flax_linear']",
        "t_embedder.mlp.2": "['params']['t_embedder']['mlp']['layers_2']['_flax_linear']",
        "y_embedder.embedding_table":
            "['params']['y_embedder']['embedding_table']['_flax_embedding']",
        "attn": "['params']['blocks']['layers_{}']['attn']",
        "mlp.fc1": "['params']['blocks']['layers_{}']['mlp']['fc1']['_flax_linear']",
        "mlp.fc2": "['params']['blocks']['layers_{}']['mlp']['fc2']['_flax_linear']",
        "adaLN_modulation.1":
            "['params']['blocks']['layers_{}']['adaLN_modulation']['layers_1']['_flax_linear']",
        "final_layer.adaLN_modulation.1":
            "['params']['final_layer']['adaLN_modulation']['layers_1']['_flax_linear']",
        "final_layer.linear": "['params']['final_layer']['linear']['_flax_linear']",
        "pos_embed": "['params']['pos_embed']",
        "": "{}",
    },
}  # fmt: skip


def arrays(state, style="kvfrans", heads=2):
    """Return every weight as the port holds it; heads are split but for the torch-like one."""
    names, found = STYLES[style], {}
    bracketed = style == "torch-like"

    def put(path, *leaves, value):
        for leaf in leaves:
            path += f"['{leaf}']" if bracketed else f"/{leaf}"
        found[names[""].format(path)] = np.ascontiguousarray(value, np.float32)

    for name, tensor in state.items():
        value, parts = tensor.numpy(), name.split(".")
        leaf = "kernel" if parts[-1] == "weight" else parts[-1]
        part, number = ".".join(parts[:-1]), ""
        if parts[0] == "blocks":
            part, number = ".".join(parts[2:-1]), parts[1]
        if name == "pos_embed":
            put(names[name], value=value)
        elif part.startswith("attn") and not bracketed:
            attention, width = names["attn"].format(number), value.shape[-1]
            if part == "attn.qkv":
                for which, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                    split = (heads, len(third) // heads)
                    third = third.T.reshape(width, *split) if leaf == "kernel" else third
                    put(attention, which, leaf,
                        value=third if leaf == "kernel" else third.reshape(split))  # fmt: skip
            elif leaf == "kernel":
                put(attention, "out", leaf, value=value.T.reshape(heads, -1, len(value)))
            else:
                put(attention, "out", leaf, value=value)
        elif part.startswith("attn"):
            last = part.removeprefix("attn.")
            put(names["attn"].format(number), last, "_flax_linear", leaf, value=value.T)
        elif "embedding_table" in name:
            put(names[part], "embedding", value=value)
        elif value.ndim == 4:
            put(names[part], leaf, value=value.transpose(2, 3, 1, 0))
        else:
            put(names[part].format(number), leaf, value=value.T)
    return found
