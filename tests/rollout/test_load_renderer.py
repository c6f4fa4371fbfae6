"""Loading a renderer: no code of a model's runs, and a saved model keeps the run's template."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from rlft.errors import ConfigError
from rlft.learner.policy import load_tokenizer
from rlft.rollout.renderer import check_given_template, load_renderer

TEMPLATE = "{% for m in messages %}[{{ m['content'] }}]{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
ASK = [{"role": "user", "content": "1+1?"}]


def test_code_that_a_model_brings_is_refused_by_name_and_never_runs(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    load_renderer(str(folder))  # the control
    (folder / "evil.py").write_text("open('ran', 'w').close()\nclass Evil: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unknown", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"needs code of its own \(auto_map\), which is never run"):
        load_renderer(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_saved_model_holds_the_template_that_the_run_used(tiny_model, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE)
    used = load_renderer(tiny_model, str(file))
    load_tokenizer(tiny_model, file.read_text()).save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.chat_template == TEMPLATE
    assert again.apply_chat_template(ASK, tokenize=True, return_dict=False, add_generation_prompt=True) == used.render(ASK)
    assert load_tokenizer(tiny_model).chat_template is None  # the control: the model's own has none


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}", ""),  # the control
        ("{% for m in messages %}\n{{ m.content }}", "line 2: Unexpected end of template"),
        ("{{ messages | no_such_filter }}", "line 1: No filter named 'no_such_filter'"),
        ("{% if messages %}{% endfor %}", "line 1: Encountered unknown tag 'endfor'"),
    ],
)
def test_a_template_that_is_not_jinja_is_refused_with_its_line_and_what_transformers_adds_to_jinja_is_known(tmp_path, template, told):
    (tmp_path / "t.jinja").write_text(template)
    if not told:
        return check_given_template(str(tmp_path / "t.jinja"))
    with pytest.raises(ConfigError, match=f"chat_template '.*t.jinja': no Jinja template: {told}.*; correct it there"):
        check_given_template(str(tmp_path / "t.jinja"))
