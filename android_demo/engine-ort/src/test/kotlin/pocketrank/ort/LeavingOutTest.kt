package pocketrank.ort

import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import pocketrank.BadInput
import pocketrank.Dump
import pocketrank.ItemId
import pocketrank.Ranker
import java.io.File

/**
 * Requests that leave items out, on the dump's bundle of 40 items whose `shelf` is a, not known, [b, c], and "" of the others.
 */
class LeavingOutTest {
    private val folder = File(Dump.folder, "refused/with_attributes")
    private var opened: Ranker? = null
    private val ranker get() = opened!!
    private val ids get() = ranker.bundle.items.ids

    @BeforeEach
    fun open() {
        assumeTrue(folder.isDirectory, "this dump has no bundles to refuse")
        opened = Ranker.open(folder, OrtEngine()).apply { observe(bundle.items.ids[2], atUs = NOW_US - 1) }
    }

    @AfterEach
    fun close() {
        opened?.close()
    }

    private fun ranked(
        exclude: Set<ItemId> = emptySet(),
        where: Map<String, Collection<String>> = emptyMap(),
        k: Int = 100,
        excludeSeen: Boolean = false,
    ): List<Pair<ItemId, Float>> {
        val found = ranker.rank(k, null, excludeSeen, NOW_US, exclude, where).hits.map { it.item to it.score }
        val byList = ranker.rank(k, ids, excludeSeen, NOW_US, exclude, where).hits.map { it.item to it.score }
        assertEquals(byList.map { it.first }, found.map { it.first })
        return found
    }

    /** The whole ranking without the rows that are to be out: scores and order are those of a request for all. */
    private fun without(vararg rows: Int) = ranked().filter { (item, _) -> ids.indexOf(item) !in rows }

    private fun rows(vararg shelves: String) = ranked(where = mapOf("shelf" to shelves.toList())).map { ids.indexOf(it.first) }.toSet()

    @Test
    fun `only items that have one of the values are ranked`() {
        assertEquals(listOf("shelf"), ranker.bundle.attributes.names)
        assertEquals(setOf(0), rows("a"))
        assertEquals(setOf(2), rows("b"))
        assertEquals(setOf(2), rows("c"))
        assertEquals(setOf(0, 2), rows("a", "c", "no such shelf"))
        assertEquals((3 until 40).toSet(), rows(""))
        assertEquals(emptySet<Int>(), rows("null"))
        assertEquals(emptySet<Int>(), rows())
        assertEquals(without(0, 1, 2), ranked(where = mapOf("shelf" to setOf(""))))
    }

    @Test
    fun `items that are excluded are left out, and others take their place`() {
        val best = ranked().map { it.first }
        val gone = setOf(best[0], best[3], ItemId.of("no such item"))
        assertEquals(ranked().filter { it.first !in gone }, ranked(gone))
        assertEquals(listOf(best[1], best[2], best[4]), ranked(gone, k = 3).map { it.first })
    }

    @Test
    fun `all that leaves items out does so at once`() {
        assertEquals(setOf(0, 2), rows("a", "b"))
        val found = ranked(setOf(ids[5]), mapOf("shelf" to listOf("", "b")), excludeSeen = true)
        assertEquals(without(0, 1, 2, 5), found)
    }

    @Test
    fun `an attribute that the bundle lacks is a line`() {
        val said = assertThrows<BadInput> { ranked(where = mapOf("brand" to listOf("a"))) }.message
        val next = "name it in [items] attributes and export again"
        assertEquals("rank: where names 'brand', which this bundle does not say of its items (it has shelf); $next", said)
        Ranker.open(File(Dump.folder, "refused/whole"), OrtEngine()).use { bare ->
            val none = assertThrows<BadInput> { bare.rank(where = mapOf("brand" to listOf("a"))) }.message
            assertEquals("rank: where names 'brand', which this bundle does not say of its items (it has none); $next", none)
        }
    }

    private companion object {
        const val NOW_US = 1_700_000_000_000_000
    }
}
