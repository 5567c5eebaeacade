"""Weights of diffusers' classes under the names that the models' authors published them with."""

import torch


def _joined(state, pattern, names):
    """Stack matrices that the authors keep in one."""
    return torch.cat([state[pattern.format(name)] for name in names])


def _swapped(value):
    """The authors' last modulation is shift, then scale; diffusers' the other way round."""
    first, second = value.chunk(2)
    return torch.cat([second, first])


def sd3(state):
    """Names of Stability's sd3_impls."""
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("transformer_blocks."))
    made = {
        "pos_embed": state["pos_embed.pos_embed"],
        "final_layer.linear.weight": state["proj_out.weight"],
        "final_layer.linear.bias": state["proj_out.bias"],
    }
    for end in ("weight", "bias"):
        made |= {
            f"x_embedder.proj.{end}": state[f"pos_embed.proj.{end}"],
            f"context_embedder.{end}": state[f"context_embedder.{end}"],
            f"final_layer.adaLN_modulation.1.{end}": _swapped(state[f"norm_out.linear.{end}"]),
        }
        for mine, theirs in (("t", "timestep"), ("y", "text")):
            for at, layer in ((0, 1), (2, 2)):
                old = f"time_text_embed.{theirs}_embedder.linear_{layer}.{end}"
                made[f"{mine}_embedder.mlp.{at}.{end}"] = state[old]
        for k in range(depth):
            old, x, text = (
                f"transformer_blocks.{k}",
                f"joint_blocks.{k}.x_block",
                f"joint_blocks.{k}.context_block",
            )
            last = k == depth - 1
            made[f"{x}.attn.qkv.{end}"] = _joined(state, f"{old}.attn.to_{{}}.{end}", "qkv")
            made[f"{text}.attn.qkv.{end}"] = _joined(
                state, f"{old}.attn.add_{{}}_proj.{end}", "qkv"
            )
            made[f"{x}.attn.proj.{end}"] = state[f"{old}.attn.to_out.0.{end}"]
            made[f"{x}.adaLN_modulation.1.{end}"] = state[f"{old}.norm1.linear.{end}"]
            modulation = state[f"{old}.norm1_context.linear.{end}"]
            made[f"{text}.adaLN_modulation.1.{end}"] = _swapped(modulation) if last else modulation
            made[f"{x}.mlp.fc1.{end}"] = state[f"{old}.ff.net.0.proj.{end}"]
            made[f"{x}.mlp.fc2.{end}"] = state[f"{old}.ff.net.2.{end}"]
            if not last:
                made[f"{text}.attn.proj.{end}"] = state[f"{old}.attn.to_add_out.{end}"]
                made[f"{text}.mlp.fc1.{end}"] = state[f"{old}.ff_context.net.0.proj.{end}"]
                made[f"{text}.mlp.fc2.{end}"] = state[f"{old}.ff_context.net.2.{end}"]
            if f"{old}.attn2.to_q.weight" in state:
                made[f"{x}.attn2.qkv.{end}"] = _joined(state, f"{old}.attn2.to_{{}}.{end}", "qkv")
                made[f"{x}.attn2.proj.{end}"] = state[f"{old}.attn2.to_out.0.{end}"]
            for one in "qk":
                if end == "weight" and f"{old}.attn.norm_{one}.weight" in state:
                    made[f"{x}.attn.ln_{one}.weight"] = state[f"{old}.attn.norm_{one}.weight"]
                    added = state[f"{old}.attn.norm_added_{one}.weight"]
                    made[f"{text}.attn.ln_{one}.weight"] = added
                    if f"{old}.attn2.norm_{one}.weight" in state:
                        made[f"{x}.attn2.ln_{one}.weight"] = state[f"{old}.attn2.norm_{one}.weight"]
    return made


def flux(state):
    """Names of Black Forest Labs' flux.model."""
    renamed = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "final_layer.linear": "proj_out",
    }
    for mine, theirs in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
        for at, layer in (("in", 1), ("out", 2)):
            renamed[f"{mine}_in.{at}_layer"] = f"time_text_embed.{theirs}_embedder.linear_{layer}"
    joined = {}
    for k in _blocks(state, "transformer_blocks"):
        old, new = f"transformer_blocks.{k}", f"double_blocks.{k}"
        for mine, norm, to, out, ff, added in (
            ("img", "norm1", "to_{}", "to_out.0", "ff", "norm"),
            ("txt", "norm1_context", "add_{}_proj", "to_add_out", "ff_context", "norm_added"),
        ):
            renamed |= {
                f"{new}.{mine}_mod.lin": f"{old}.{norm}.linear",
                f"{new}.{mine}_attn.proj": f"{old}.attn.{out}",
                f"{new}.{mine}_attn.norm.query_norm": f"{old}.attn.{added}_q",
                f"{new}.{mine}_attn.norm.key_norm": f"{old}.attn.{added}_k",
                f"{new}.{mine}_mlp.0": f"{old}.{ff}.net.0.proj",
                f"{new}.{mine}_mlp.2": f"{old}.{ff}.net.2",
            }
            joined[f"{new}.{mine}_attn.qkv"] = [f"{old}.attn.{to.format(one)}" for one in "qkv"]
    for k in _blocks(state, "single_transformer_blocks"):
        old, new = f"single_transformer_blocks.{k}", f"single_blocks.{k}"
        renamed |= {
            f"{new}.modulation.lin": f"{old}.norm.linear",
            f"{new}.linear2": f"{old}.proj_out",
            f"{new}.norm.query_norm": f"{old}.attn.norm_q",
            f"{new}.norm.key_norm": f"{old}.attn.norm_k",
        }
        parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        joined[f"{new}.linear1"] = [f"{old}.{part}" for part in parts]
    made = {}
    for end in ("weight", "bias"):
        for new, old in renamed.items():
            if f"{old}.{end}" in state:
                own = "scale" if new.endswith(("query_norm", "key_norm")) else end
                made[f"{new}.{own}"] = state[f"{old}.{end}"]
        for new, old in joined.items():
            made[f"{new}.{end}"] = torch.cat([state[f"{one}.{end}"] for one in old])
        if f"norm_out.linear.{end}" in state:
            made[f"final_layer.adaLN_modulation.1.{end}"] = _swapped(
                state[f"norm_out.linear.{end}"]
            )
    return made


def chroma(state):
    """Names of lodestones' Chroma: Flux without modulations, which one part makes for all."""
    made = flux(state)
    guidance = "distilled_guidance_layer."
    for name, value in state.items():
        if name.startswith(guidance):
            name = name.replace("linear_1", "in_layer").replace("linear_2", "out_layer")
            made[name.replace("weight", "scale") if ".norms." in name else name] = value
    return made


def z_image(state):
    """Names of Tongyi-MAI's Z-Image in ComfyUI's repackaging, with one matrix for q, k and v."""
    renamed = (
        ("all_x_embedder.2-1.", "x_embedder."), ("all_final_layer.2-1.", "final_layer."),
        (".to_out.0.", ".out."), (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm."),
    )  # fmt: skip
    made = {}
    for name, value in state.items():
        for old, new in renamed:
            name = name.replace(old, new)
        if ".to_q." in name:
            made[name.replace("to_q", "qkv")] = _joined(state, name.replace("to_q", "to_{}"), "qkv")
        elif ".to_k." not in name and ".to_v." not in name:
            made[name] = value
    return made


def wan(state):
    """Names of Wan-AI's wan.modules.model."""
    renamed = (
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1.", "self_attn."), ("attn2.", "cross_attn."),
        (".to_out.0.", ".o."), (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."),
        ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
        (".norm2.", ".norm_of_text."), (".norm3.", ".norm2."), (".norm_of_text.", ".norm3."),
    )  # fmt: skip
    made = {}
    for name, value in state.items():
        if not name.startswith("blocks."):
            name = name.replace("scale_shift_table", "head.modulation")
            name = name.replace("proj_out", "head.head")
        for old, new in renamed:
            name = name.replace(old, new)
        made[name.replace("scale_shift_table", "modulation")] = value
    return made


def _blocks(state, name):
    return sorted({int(key.split(".")[1]) for key in state if key.startswith(f"{name}.")})


def ltx(state):
    """Names of Lightricks' ltx_video."""
    renamed = (
        ("proj_in.", "patchify_proj."), ("time_embed.", "adaln_single."),
        (".norm_q.", ".q_norm."), (".norm_k.", ".k_norm."),
    )  # fmt: skip
    made = {}
    for name, value in state.items():
        for old, new in renamed:
            name = name.replace(old, new)
        made[name] = value
    return made
