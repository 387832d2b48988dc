"""The names of Gemma 4's control tokens.

Names only, never ids: a vocabulary may give them other ids or lack some of them, so every id is
looked up in the tokenizer that is in use. Source: Gemma 4 prompt formatting,
https://ai.google.dev/gemma/docs.
"""

PAD, EOS, BOS, UNK, MASK = "<pad>", "<eos>", "<bos>", "<unk>", "<mask>"
TURN, TURN_END = "<|turn>", "<turn|>"
CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
THINK = "<|think|>"
TOOL, TOOL_END = "<|tool>", "<tool|>"
CALL, CALL_END = "<|tool_call>", "<tool_call|>"
RESPONSE, RESPONSE_END = "<|tool_response>", "<tool_response|>"
QUOTE = '<|"|>'
IMAGE, AUDIO, VIDEO = "<|image|>", "<|audio|>", "<|video|>"
IMAGE_BEGIN, IMAGE_END = "<|image>", "<image|>"
AUDIO_BEGIN, AUDIO_END = "<|audio>", "<audio|>"

#: What SentencePiece itself reserves; the rest are ordinary pieces that are matched first.
RESERVED = (PAD, EOS, BOS, UNK)

#: Every other control token, in the order of Google's vocabulary.
SYMBOLS = (
    *(MASK, TOOL, TOOL_END, CALL, CALL_END, RESPONSE, RESPONSE_END, QUOTE, THINK),
    *(CHANNEL, CHANNEL_END, TURN, TURN_END),
    *(IMAGE_BEGIN, AUDIO_BEGIN, IMAGE, AUDIO, IMAGE_END, AUDIO_END, VIDEO),
)

ALL = (*RESERVED, *SYMBOLS)

#: A model that writes one of these has finished: its turn, its document, or its request for a tool.
STOPS = (EOS, TURN_END, RESPONSE)

#: Google's SentencePiece file keeps the placeholder of a video under this name; Hugging Face's
#: renames it.
VIDEO_ALIAS = "<unused2968>"

#: How the thought channel opens. A large model is told not to think with a channel already closed.
THOUGHT_OPEN = f"{CHANNEL}thought\n"
EMPTY_THOUGHT = f"{THOUGHT_OPEN}{CHANNEL_END}"
