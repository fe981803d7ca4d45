package pocketrank

/**
 * Everything pocketrank raises on purpose; a message says what, where, found, wanted and the next step, in one line.
 *
 *     PocketRankError
 *     ├── BadInput            a file or a value is not what was wanted
 *     │   ├── BadTensors      a safetensors file that is truncated or lacks a tensor
 *     │   │   └── BadPack     ... and it should have been a pack
 *     │   ├── BadBundle       a bundle with a missing, altered or too new part
 *     │   └── BadKey          a key that is not one, or not of the kind that is wanted
 *     └── BundleMismatch      a pack encoded by another model than the bundle
 */
open class PocketRankError(message: String) : RuntimeException(message)

open class BadInput(message: String) : PocketRankError(message)

open class BadTensors(message: String) : BadInput(message)

class BadPack(message: String) : BadTensors(message)

class BadBundle(message: String) : BadInput(message)

class BadKey(message: String) : BadInput(message)

class BundleMismatch(message: String) : PocketRankError(message)

/** What a file or a library said, fit to stand in one of our messages: one printable line of at most 300 letters. */
fun oneLine(text: Any?): String {
    val line = text.toString().take(2000).split(WHITE).filter(String::isNotEmpty).joinToString(" ")
        .map { if (isPrintable(it)) it else '?' }.joinToString("")
    return if (line.length <= 300) line else line.take(297) + "..."
}

/** A value out of a JSON text, as messages show it. */
internal fun shown(value: Any?): String = when (value) {
    null -> "None"
    true -> "True"
    false -> "False"
    is String -> oneLine("'${value.take(100).map(::escaped).joinToString("")}'")
    is Double -> if (value == Math.rint(value) && Math.abs(value) < 1e16) "%d.0".format(value.toLong()) else "$value"
    is List<*> -> oneLine("[${value.take(20).joinToString { shown(it) }}]")
    is Map<*, *> -> oneLine("{${value.entries.take(20).joinToString { "${shown(it.key)}: ${shown(it.value)}" }}}")
    else -> oneLine(value)
}

private fun escaped(letter: Char): String = when {
    letter == '\n' -> "\\n"
    letter == '\r' -> "\\r"
    letter == '\t' -> "\\t"
    letter == '\\' -> "\\\\"
    letter < ' ' || letter in '\u007f'..'\u009f' -> "\\x%02x".format(letter.code)
    else -> letter.toString()
}

/** Whether a letter takes a place of its own on a line: no control, no separator but the blank, nothing unassigned. */
internal fun isPrintable(letter: Char): Boolean = letter == ' ' || when (Character.getType(letter).toByte()) {
    Character.CONTROL, Character.FORMAT, Character.UNASSIGNED, Character.PRIVATE_USE, Character.LINE_SEPARATOR,
    Character.PARAGRAPH_SEPARATOR, Character.SPACE_SEPARATOR,
    -> false
    else -> true
}

private val WHITE = Regex("[\\s\\u001c-\\u001f\\u0085\\u00a0\\u2028\\u2029]+")
