package pocketrank

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import kotlin.random.Random

class JsonTest {
    private fun read(text: String, deepest: Int = 16) = Json.read(text.toByteArray(), 1L shl 20, deepest)

    @Test
    fun `values come as they are written`() {
        val text = """ {"a": [1, -0, 9223372036854775807, -9223372036854775808], "b":{"":null}, "c" :true, "d": false,
            "e": [0.5, -1e3, 2E-2, 1.5e+1], "f": "é\u00e9\n\"\\\/ \ud83d\ude00 😀", "g": [], "h": {} } """
        val wanted = mapOf(
            "a" to listOf(1L, 0L, Long.MAX_VALUE, Long.MIN_VALUE), "b" to mapOf("" to null), "c" to true, "d" to false,
            "e" to listOf(0.5, -1000.0, 0.02, 15.0), "f" to "éé\n\"\\/ 😀 😀", "g" to listOf<Any?>(),
            "h" to mapOf<String, Any?>(),
        )
        assertEquals(wanted, read(text))
    }

    @Test
    fun `what readers disagree on is refused`() {
        val texts = listOf(
            "", " ", "[", "]", "{", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "'a'",
            "{\"a\":1,\"a\":1}", "{\"a\":1,\"\\u0061\":1}", "01", "+1", "-", "1.", ".5", "1e", "0x1", "1_0", "१", "NaN",
            "Infinity", "-Infinity", "1e999", "-1e999", "9223372036854775808", "-9223372036854775809", "99999999999999999999999",
            "\"a", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\t\"", "\"\n\"", "\"\u0000\"", "\"\\ud800\"", "\"\\udc00\"",
            "\"\\ud800\\u0041\"", "\"\\udc00\\ud800\"", "nul", "nulll", "TRUE", "1 2", "[1]]", "\ufeff1", "1\u0000", "\u00a01",
        )
        for (text in texts) assertThrows<BadJson>(text) { read(text) }
        assertThrows<BadJson> { Json.read(byteArrayOf(0x22, 0xff.toByte(), 0x22), 99, 9) }
        assertThrows<BadJson> { Json.read(byteArrayOf(0x22, 0xed.toByte(), 0xa0.toByte(), 0x80.toByte(), 0x22), 99, 9) }
    }

    @Test
    fun `a text may be no longer and no deeper than was said`() {
        assertEquals(listOf(listOf(1L)), read("[[1]]", deepest = 2))
        assertEquals("nested deeper than 1", assertThrows<BadJson> { read("[[1]]", deepest = 1) }.message)
        assertEquals("nested deeper than 16", assertThrows<BadJson> { read("[{\"a\":".repeat(100_000)) }.message)
        assertThrows<BadJson> { Json.read("[1]".toByteArray(), 2, 9) }
        assertEquals(listOf(1L), Json.read("[1]".toByteArray(), 3, 9))
    }

    @Test
    fun `a spoiled text is read or refused, and what was read reads the same again`() {
        val random = Random(7)
        val seeds = listOf(
            Dump.folder.resolve("bundles/maxsim/manifest.json"), Dump.folder.resolve("bundles/maxsim/item_ids.json"),
            Dump.folder.resolve("memory.json"),
        ).map { it.readBytes().copyOf(4000.coerceAtMost(it.length().toInt())) }
        val words = listOf("\"", "\\", "\\u", "\\ud800", "{", "}", "[", "]", ",", ":", "1e999", "NaN", "-", "\u0000", "0", "é")
        var taken = 0
        repeat(60_000) {
            var text = seeds.random(random).copyOf()
            if (random.nextBoolean()) text = text.copyOfRange(0, random.nextInt(200)) + ']'.code.toByte()
            repeat(1 + random.nextInt(3)) {
                val at = random.nextInt(text.size)
                when (random.nextInt(3)) {
                    0 -> text[at] = random.nextInt().toByte()
                    1 -> text = text.copyOfRange(0, at) + words.random(random).toByteArray() + text.copyOfRange(at, text.size)
                    else -> text = text.copyOfRange(0, at) + text.copyOfRange(random.nextInt(at, text.size), text.size) + 32
                }
            }
            try {
                val found = Json.read(text, 1L shl 20, 16)
                assertEquals(found, Json.read(written(found).toByteArray(), 1L shl 20, 16))
                taken++
            } catch (error: BadJson) {
                assertTrue(error.message!!.length < 200)
            }
        }
        assertTrue(taken > 100, "$taken taken")
    }

    private fun written(value: Any?): String = when (value) {
        is Map<*, *> -> value.entries.joinToString(",", "{", "}") { "${written(it.key)}:${written(it.value)}" }
        is List<*> -> value.joinToString(",", "[", "]") { written(it) }
        is String -> value.map { "\\u%04x".format(it.code) }.joinToString("", "\"", "\"")
        else -> value.toString()
    }
}
