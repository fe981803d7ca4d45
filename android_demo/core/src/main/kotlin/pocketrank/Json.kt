package pocketrank

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException

/** A text that is not JSON, or that two readers may read as two things. */
class BadJson(message: String) : BadInput(message)

/**
 * JSON out of files that are not trusted, read strictly.
 *
 * Objects become maps, lists lists, integers [Long], other numbers [Double]. Names twice in one object, NaN, numbers
 * that are not finite, half a surrogate pair and integers beyond 64 bits are refused: they mean one thing to one
 * reader and another to the next. Not a writer, and no streaming: texts here have a megabyte at most, or one line an item.
 */
class Json private constructor(private val text: String, private val deepest: Int) {
    private var at = 0

    companion object {
        /**
         * Reads a text.
         *
         * @param content UTF-8, from its position to its limit.
         * @param most bytes it may have.
         * @param deepest lists and objects that may stand in each other.
         * @throws BadJson it is longer, deeper, not JSON in UTF-8, or has what this class refuses.
         */
        fun read(content: ByteBuffer, most: Long, deepest: Int): Any? {
            if (content.remaining() > most) {
                throw BadJson("${content.remaining()} bytes, wanted at most $most")
            }
            val text = try {
                Charsets.UTF_8.newDecoder().decode(content.duplicate()).toString()
            } catch (_: CharacterCodingException) {
                throw BadJson("not UTF-8")
            }
            val reader = Json(text, deepest)
            val found = reader.value(0)
            reader.blanks()
            if (reader.at < text.length) reader.fail("more than one value")
            return found
        }

        fun read(content: ByteArray, most: Long, deepest: Int): Any? = read(ByteBuffer.wrap(content), most, deepest)
    }

    private fun value(depth: Int): Any? {
        blanks()
        return when (val letter = peek()) {
            '{' -> members(deeper(depth))
            '[' -> elements(deeper(depth))
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> if (letter == '-' || letter in '0'..'9') number() else fail("no value")
        }
    }

    private fun deeper(depth: Int): Int {
        if (depth == deepest) throw BadJson("nested deeper than $deepest")
        at++
        return depth + 1
    }

    private fun members(depth: Int): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        if (ends('}')) return found
        do {
            blanks()
            if (peek() != '"') fail("no name")
            val name = string()
            blanks()
            if (peek() != ':') fail("no colon")
            at++
            val value = value(depth)
            if (name in found) throw BadJson("'${name.take(40)}' stands twice in one object")
            found[name] = value
        } while (goesOn('}'))
        return found
    }

    private fun elements(depth: Int): List<Any?> {
        val found = ArrayList<Any?>()
        if (ends(']')) return found
        do found.add(value(depth)) while (goesOn(']'))
        return found
    }

    private fun ends(bracket: Char): Boolean {
        blanks()
        if (peek() != bracket) return false
        at++
        return true
    }

    private fun goesOn(bracket: Char): Boolean {
        if (ends(bracket)) return false
        if (peek() != ',') fail("no comma")
        at++
        return true
    }

    private fun string(): String {
        at++
        val begin = at
        while (at < text.length && text[at] != '"' && text[at] != '\\') if (text[at++] < ' ') fail("a control character")
        if (peek() == '"') return text.substring(begin, at++) // which is how most of them end
        val found = StringBuilder(text.substring(begin, at))
        while (true) {
            when (val letter = next()) {
                '"' -> return found.toString().also(::checkPairs)
                '\\' -> found.append(escaped())
                else -> if (letter < ' ') fail("a control character") else found.append(letter)
            }
        }
    }

    private fun escaped(): Char = when (val letter = next()) {
        '"', '\\', '/' -> letter
        'b' -> '\b'
        'f' -> '\u000c'
        'n' -> '\n'
        'r' -> '\r'
        't' -> '\t'
        'u' -> (1..4).fold(0) { code, _ -> 16 * code + hexadecimal(next()) }.toChar()
        else -> fail("no such escape")
    }

    private fun hexadecimal(digit: Char): Int = when (digit) {
        in '0'..'9' -> digit - '0'
        in 'a'..'f' -> digit - 'a' + 10
        in 'A'..'F' -> digit - 'A' + 10
        else -> fail("no hexadecimal digit")
    }

    private fun checkPairs(found: String) {
        var place = 0
        while (place < found.length) {
            val letter = found[place++]
            if (!letter.isSurrogate()) continue
            val isPair = letter.isHighSurrogate() && place < found.length && found[place++].isLowSurrogate()
            if (!isPair) fail("half a surrogate pair")
        }
    }

    private fun number(): Any {
        val begin = at
        if (peek() == '-') at++
        if (peek() == '0') at++ else digits()
        var isInteger = true
        if (peek() == '.') {
            isInteger = false
            at++
            digits()
        }
        if (peek() == 'e' || peek() == 'E') {
            isInteger = false
            at++
            if (peek() == '+' || peek() == '-') at++
            digits()
        }
        val written = text.substring(begin, at)
        if (isInteger) return written.toLongOrNull() ?: throw BadJson("${written.take(40)} does not fit 64 bits")
        val found = written.toDouble()
        if (found.isInfinite()) throw BadJson("${written.take(40)} is not a finite number")
        return found
    }

    private fun digits() {
        val begin = at
        while (peek() in '0'..'9') at++
        if (at == begin) fail("no digit")
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, at)) fail("no value")
        at += word.length
        return value
    }

    private fun blanks() {
        while (at < text.length && text[at].let { it == ' ' || it == '\n' || it == '\t' || it == '\r' }) at++
    }

    /** The next letter; U+0000, which nothing here allows, where the text ends. */
    private fun peek(): Char = if (at < text.length) text[at] else '\u0000'

    private fun next(): Char = if (at < text.length) text[at++] else fail("the text ends")

    private fun fail(what: String): Nothing = throw BadJson("$what at letter $at")
}
