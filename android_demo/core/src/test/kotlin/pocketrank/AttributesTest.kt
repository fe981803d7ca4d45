package pocketrank

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import java.nio.ByteBuffer

class AttributesTest {
    private fun read(text: String, items: Int) = Attributes.read(ByteBuffer.wrap(text.toByteArray()), items, "the file")

    @Test
    fun `of several attributes an item has to have all`() {
        val found = read("""{"shelf": ["a", "b", ["a", "b"], null], "brand": ["x", "x", "y", "x"]}""", 4)
        fun rows(vararg where: Pair<String, List<String>>) = (0 until 4).filter(found.wanted(mapOf(*where))::test)
        assertEquals(listOf("shelf", "brand"), found.names)
        assertEquals(listOf(0, 1, 2, 3), rows())
        assertEquals(listOf(0, 2), rows("shelf" to listOf("a")))
        assertEquals(listOf(0), rows("shelf" to listOf("a"), "brand" to listOf("x")))
        assertEquals(listOf(0), rows("brand" to listOf("x"), "shelf" to listOf("a")))
        assertEquals(listOf(0, 1, 2), rows("brand" to listOf("x", "y"), "shelf" to listOf("b", "a")))
    }

    @Test
    fun `what is not text of every item is refused with how many there are`() {
        for (text in listOf("""{"a": ["x"]}""", """{"a": null}""", "null", "1", """["a"]""")) {
            val said = assertThrows<BadBundle>(text) { read(text, 1234) }.message
            assertEquals("the file: not lists of text of 1,234 items; export the bundle again", said)
        }
        for (value in listOf("true", "0.5", "[null]", "[\"x\", 1]", "{}")) {
            val said = assertThrows<BadBundle>(value) { read("""{"a": ["x"], "b": [$value]}""", 1) }.message
            assertEquals("the file: not lists of text of 1 items; export the bundle again", said)
        }
    }
}
