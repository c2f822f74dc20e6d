"""Chat data: from a user's rows to token ids in which only what the assistant says is to be predicted.

    record -> layouts -> conversation -> template -> text with spans -> tokens -> ids, ~id where not scored
              (whose    (validated)     (jinja, no   (of what the
              columns)                  transformers) assistant says)

``encoder.ChatEncoder`` puts it together. All of it runs in worker processes and imports neither torch nor transformers.
"""
