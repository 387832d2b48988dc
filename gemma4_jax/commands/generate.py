"""Answer one message, continue a text, or answer every row of a file.

PROMPT is put in the chat format if the model's vocabulary has its tokens, unless --raw is given; "-"
reads it from standard input. The answer goes to standard output as it comes; thoughts and the speed go to
standard error.
"""

import argparse
import json
import sys

from gemma4_jax.commands import constraining, generate_file
from gemma4_jax.commands.answering import (
    add_flags,
    answer,
    is_chat_model,
    message_of,
    open_model,
    options,
    prepare,
    read_stdin,
    sampler_of,
)
from gemma4_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `gemma4 generate` takes."""
    parser.add_argument("model", metavar="MODEL", help="folder of a model")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help='the message or text; "-" reads it'
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it stands")
    add_flags(parser, temperature=0.0, top_k=None, top_p=None)
    constraining.add_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    generate_file.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Load, generate, report."""
    if arguments.input is not None:
        generate_file.run(arguments)
        return
    if arguments.output is not None:
        raise UserError(
            "--output is for the answers to --input; one answer goes to standard output"
        )
    if arguments.prompt is None:
        raise UserError("no PROMPT; give one, or a file of them with --input")
    text = read_stdin(sys.stdin.read) if arguments.prompt == "-" else arguments.prompt
    if not text.strip():
        raise UserError("the prompt is empty")
    if arguments.raw and (arguments.system is not None or arguments.think or arguments.tools):
        flag = "--think" if arguments.think else "--tools" if arguments.tools else "--system"
        raise UserError(
            f"{flag} belongs to the chat format, which --raw leaves out; drop one of them"
        )

    from gemma4_jax.commands.display import Display
    from gemma4_jax.compiled_programs import keep_compiled_programs

    constrained = constraining.read_flags(arguments)
    keep_compiled_programs()
    model = open_model(arguments)
    if model.tokenizer is None:
        raise UserError(
            f"{arguments.model} has no tokenizer; put a tokenizer.json or tokenizer.model in it"
        )
    raw = arguments.raw or not is_chat_model(model)
    if (
        raw
        and not arguments.raw
        and (arguments.system is not None or arguments.think or arguments.tools)
    ):
        raise UserError(
            f"{arguments.model} is no chat model (its vocabulary has no turn tokens): "
            "drop --system, --think and --tools"
        )
    messages = [{"role": "user", "content": text}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    tools = constrained["tools"]
    prompt = prepare(model, text if raw else messages, arguments.think, tools)

    display = Display(raw=raw, in_thought=prompt.in_thought)
    show = (lambda piece: None) if arguments.json else display.push
    try:
        settings = options(arguments) | constrained
        result = answer(
            sampler_of(arguments, model), prompt, arguments.max_new_tokens, settings, show
        )
    finally:
        display.close()
    if arguments.json:
        message = message_of(model, prompt, result, tools)
        report = {
            "text": result.text,
            "reasoning": message.reasoning,
            "content": message.content,
            "tool_calls": [{"name": c.name, "arguments": c.arguments} for c in message.tool_calls],
            "finish_reason": result.finish_reason,
            "tokens": result.tokens,
            "prompt_tokens": result.prompt_tokens,
            "seconds_to_first_token": result.first,
            "tokens_per_second": result.tokens_per_second,
        }
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(result.summary(), file=sys.stderr)
    if result.finish_reason == "interrupted":
        raise KeyboardInterrupt
