"""The words of the data page: every check in the language of the person who owns the data, who need not know how a model is trained.

It refuses to judge: it says what a finding means and what to do about it, never how many are too many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tuner.data.checks import CHECKS
from tuner.data.findings import Severity
from tuner.data.personal import KINDS
from tuner.data.spec import Action


@dataclass(frozen=True)
class Words:
    """What was found, in a sentence that holds for one record as for a thousand; why it matters; what to do."""

    title: str
    why: str
    do: str


SEVERITIES: dict[Severity, tuple[str, str]] = {
    "error": ("✕", "must be mended"),
    "warning": ("▲", "worth a look"),
    "note": ("●", "good to know"),
}
ACTIONS: dict[Action, str] = {
    "refuse": "stops the training",
    "warn": "is reported, nothing more",
    "drop": "leaves the record out, and counts it",
    "off": "not looked for",
}


def words(check: str, code: str, fix: str) -> Words:
    """The words for a check and code; for one that has none here, the catalogue's own description and the finding's own fix."""
    if check in ("personal_data", "secrets") and code.lower() in KINDS:
        return replace(BY_CHECK[check], title=f"{BY_CHECK[check].title}: {KINDS[code.lower()].what}")
    known = BY_CODE.get((check, code)) or BY_CODE.get(("", code)) or BY_CHECK.get(check)
    if known is not None:
        return known
    what = CHECKS[check].what if check in CHECKS else check.replace("_", " ")
    return Words(what[:1].upper() + what[1:], "", fix[:1].upper() + fix[1:] + ".")


_LEAKS = "The grade would be too good: the model is asked what it was shown."

BY_CODE: dict[tuple[str, str], Words] = {
    ("", "NOT_AVAILABLE"): Words(
        "This could not be judged by meaning",
        "The word vectors shipped with tuner know English; these texts are mostly something else.",
        "Look through a sample by hand.",
    ),
    ("overlong", "PROMPT_OVERLONG"): Words(
        "Questions that alone are longer than the model may read",
        "There is no room left for the answer.",
        "Shorten them, or raise the limit (template.max_tokens).",
    ),
    ("near_duplicates", "SAME_WORDS"): Words(
        "Records that differ in letter case, punctuation or order of words only",
        "They count double and teach nothing new.",
        "Keep one of each, unless the spelling is what matters.",
    ),
    ("coverage", "COVERED"): Words(
        "How much of what users ask is taught", "Inputs without a near training example are answered by guesswork.", "See “Annotate these next” on this page."
    ),
    ("coverage", "OVER_REPRESENTED"): Words(
        "Some kinds of records are far more frequent in training than in use",
        "The model leans towards what it sees most.",
        "Nothing, if it is meant. Otherwise keep fewer of them.",
    ),
    ("templates", "SYNTHETIC_SHARE"): Words(
        "Part of the training data was written by a model",
        "A model trained on a model's words takes over its habits.",
        "Make sure the share is one you chose, and grade on real records.",
    ),
    ("synthetic_grades", "SYNTHETIC"): Words(
        "Records used for grading were written by a model", "A score on invented records flatters itself.", "Collect some real ones for grading."
    ),
    ("rare_labels", "IMBALANCE"): Words(
        "Labels are very unevenly spread",
        "The model rarely gives a label that it hardly ever saw.",
        "Collect more records of the rare labels; read each label's score in the report.",
    ),
    ("unused_columns", "TOOLS"): Words(
        "A list of tools stands in the data and is not used",
        "The model is not shown what it may call.",
        "Nothing, if it does not need them; else put them into the prompt.",
    ),
}

BY_CHECK: dict[str, Words] = {
    "files": Words("A file cannot be read", "None of its records are used.", "Mend or replace the file as described."),
    "unreadable": Words(
        "Lines that are not a whole record",
        "What cannot be read cannot be learned; a broken line often means that the export went wrong.",
        "Mend the lines, or export the file again.",
    ),
    "boundary": Words(
        "The end of a question and the beginning of its answer share a token",
        "The model is trained as it is served: the question ends where it ends in production.",
        "Nothing, unless all records say this: then choose a prompt format that ends with a line break or a token of its own.",
    ),
    "structure": Words(
        "Records that do not have the expected parts",
        "Without a question and an answer there is nothing to learn.",
        "Give each record the parts that are named, or delete it.",
    ),
    "template": Words("Records that cannot be put into the form the model reads", "They cannot be trained on.", "Mend or delete them."),
    "overlong": Words(
        "Records longer than the model may read",
        "Nothing is ever cut in silence: such records are refused.",
        "Shorten them, split them, or raise the limit (template.max_tokens).",
    ),
    "empty_completion": Words("The answer is empty", "It teaches the model to say nothing.", "Write the answer, or delete the record."),
    "empty_prompt": Words("The question is empty", "It teaches the model to answer what was not asked.", "Write the question, or delete the record."),
    "json_completion": Words(
        "An answer that should be a JSON object is none",
        "The program that reads the answers will fail on ones like it.",
        "Mend the answer, or delete the record.",
    ),
    "padded_label": Words("Labels with blanks around them", "“refund” and “refund ” are two labels to a model.", "Remove the blanks."),
    "padded_completion": Words("Answers that begin or end with blank space", "The model learns to write the blanks too.", "Remove them."),
    "control_tokens": Words(
        "Text that spells a model's control marks", "It stays plain text here, but usually got in by accident.", "Delete it if it is an accident."
    ),
    "html_entities": Words("Left-overs of web pages, like &amp;", "The model learns to write them.", "Turn them back into the characters they stand for."),
    "mojibake": Words(
        "Broken letters, like â€™ for ’",
        "Files were saved in one encoding and read in another; the model learns the broken form.",
        "Export the data again as UTF-8.",
    ),
    "hidden_characters": Words("Characters nobody can see", "A model reads them; they can change what a text means, or hide text from you.", "Delete them."),
    "exact_duplicates": Words("The same record more than once", "What is repeated counts double.", "Keep one of each."),
    "near_duplicates": Words(
        "Records that differ in a few words only",
        "They count almost double, unless the few words are what matters.",
        "Look at the words that differ: keep both records if they matter, else delete one.",
    ),
    "contradictions": Words(
        "The same question has different answers", "The model learns to toss a coin.", "Decide which answer is right; correct or delete the others."
    ),
    "near_contradictions": Words(
        "Nearly the same question has different answers",
        "If the difference does not justify it, the model learns to toss a coin.",
        "Look at the words that differ; correct the answer that is wrong.",
    ),
    "overlap": Words("The same question is used for training and for grading", _LEAKS, "Delete it on one side."),
    "near_overlap": Words("Nearly the same question is used for training and for grading", _LEAKS, "Delete the training record."),
    "leakage": Words("Long passages of graded records also stand in training", _LEAKS, "Compare the two; delete the training record if it is a copy."),
    "group_overlap": Words("One customer, conversation or document is used for training and for grading", _LEAKS, "Keep all of its records on one side."),
    "repeated_ids": Words("Two records have the same id", "A correction or deletion by id would hit the wrong one.", "Give each record its own id."),
    "rare_labels": Words(
        "Labels with too few records",
        "Fewer than five examples teach a label badly, and grade it by chance.",
        "Collect more records of them, or merge them with another label.",
    ),
    "similar_labels": Words("Two labels with nearly the same name", "Usually one label written in two ways.", "Rename one, if both mean the same."),
    "unseen_label": Words(
        "A label that is graded but never taught", "The model cannot know it.", "Add training records with this label, or leave it out of grading."
    ),
    "suspect_labels": Words(
        "Labels that the other records speak against",
        "Records like these carry another label: one of the two is often a slip.",
        "Look at each; correct the label if it is wrong.",
    ),
    "label_task": Words(
        "The answers look like a fixed list of labels", "As labels they would be checked and graded more strictly.", "Set data.task: label in the recipe."
    ),
    "personal_data": Words("Personal data", "The model may repeat it to anybody.", "Replace it (data.redact does so for you), or delete the records."),
    "secrets": Words(
        "Passwords or keys", "Whoever can use the model may get it to say them.", "Remove them, and change the passwords and keys: they have been seen."
    ),
    "mixed_scripts": Words("Words with letters of two alphabets", "They look right and are not: a faked word, or a slip of the keyboard.", "Retype them."),
    "boilerplate": Words(
        "Answers in the voice of a chatbot", "“As an AI language model…” will be repeated for anything.", "Rewrite the answers, or delete them."
    ),
    "placeholders": Words("Placeholders that were never filled in", "The model learns to write [Your Name].", "Fill them in, or delete the records."),
    "near_empty": Words("Answers that say nothing", "A dot or “N/A” teaches the model to say as little.", "Write the answers, or delete the records."),
    "leaked_instruction": Words("Answers that run on into the next example", "The model learns to talk to itself.", "Cut the answer where it should end."),
    "invented_links": Words(
        "Links and addresses that nobody gave", "The model learns to make up links.", "Take them out, unless they are real and always the same."
    ),
    "impossible_media": Words("Pictures or sound are asked for or given", "A text model has neither.", "Delete these records."),
    "needs_internet": Words(
        "Answers that would need a look at the web", "The model learns to pretend that it looked.", "Delete these records, or put the facts into the question."
    ),
    "wrong_arithmetic": Words("Sums that do not add up", "The model learns to be wrong with confidence.", "Correct the sums."),
    "echo": Words("Answers that only repeat the question", "The model learns to repeat.", "Write the answers, or delete the records."),
    "repetition": Words("Answers that say one thing over and over", "The model learns to go round in circles.", "Cut the repetition."),
    "wrong_answers": Words("Answers that seem to belong to another question", "Often a column that slipped by one row.", "Compare with the rows around it."),
    "token_tags": Words(
        "A list of tags that is longer or shorter than its words",
        "From the slip on, every word is taught the wrong tag.",
        "Count the tags against the words, and mend the list.",
    ),
    "base_misfits": Words(
        "Answers that do not seem to follow from their question",
        "The base model finds the answer as unlikely with the question as without it.",
        "Read each: does the answer belong to this question?",
    ),
    "system_prompts": Words(
        "Different instructions at the start of records",
        "What is said in use should be what was said in training.",
        "Use the same instruction everywhere, unless it is meant.",
    ),
    "answer_formats": Words("Answers in two formats", "Data or prose: the model will mix them as these records do.", "Use one format."),
    "languages": Words(
        "Records in another language than the rest",
        "The model may answer in it where nobody expects it.",
        "Translate or delete them, or name the language in data.languages if it is meant.",
    ),
    "unused_columns": Words(
        "Columns that nothing uses", "What they hold is not learned.", "Nothing, if the model does not need it; else put it into the question."
    ),
    "synthetic_grades": Words(
        "Records used for grading were written by a model, though real ones exist",
        "A score on invented records flatters itself.",
        "Grade on real records; keep the invented ones for training.",
    ),
    "templates": Words(
        "Answers that read as if written from one template",
        "The model learns the template more than the task.",
        "Vary them, unless answers in use are as uniform.",
    ),
    "stale": Words("Facts that may be out of date", "The model will state them as if they were true today.", "Renew the answers, or delete the records."),
    "provenance": Words("The origin or date of a record cannot be read", "It would be ignored without a word.", "Write it in the form that is asked for."),
    "coverage": Words(
        "Users ask for things that training does not show", "There the model can only guess.", "Collect or annotate some of these; see “Annotate these next”."
    ),
    "redundancy": Words(
        "Many training records ask for nearly the same", "They cost time and add little.", "Keep fewer of them, if you like; nothing breaks if you do not."
    ),
}

LANGUAGES: dict[str, str] = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovene", "sr": "Serbian",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
