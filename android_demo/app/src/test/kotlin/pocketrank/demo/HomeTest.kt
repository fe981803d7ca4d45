package pocketrank.demo

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import pocketrank.BadBundle
import pocketrank.BadInput
import pocketrank.Bundle
import pocketrank.Dump
import pocketrank.Engine
import pocketrank.Graph
import pocketrank.ItemId
import pocketrank.Pack
import pocketrank.Ranker
import pocketrank.Tensor
import pocketrank.ort.OrtEngine
import java.io.File
import java.io.IOException

class HomeTest {
    @TempDir
    lateinit var folder: File

    private val engine = OrtEngine()
    private val bundle = Bundle.open(File(Dump.folder, "bundles/mean"))
    private val pack = File(Dump.folder, "rankings/mean/full.safetensors").readBytes()

    private fun segments(shipped: (() -> ByteArray)? = { pack }, then: (Ranker) -> Unit = {}): Int =
        Home(File(folder, "user"), bundle, engine, shipped).use {
            val found = it.ranker.stats().segments
            then(it.ranker)
            found
        }

    @Test
    fun `what a user has forgotten does not come back with the next start`() {
        assertEquals(6, segments())
        assertEquals(6, segments { it.forget() })
        assertEquals(0, segments())
    }

    @Test
    fun `a user whom the server forgot has no pack at the next start, and can be shown`() {
        assertEquals(6, segments { it.forget(it.stats().through!!.timeUs) })
        assertEquals(0, segments())
    }

    @Test
    fun `a pack that could not be taken at the first start is taken at the next, and one of before the marker stays`() {
        assertThrows<IOException> { segments({ throw IOException("No space left on device") }) }
        assertEquals(6, segments())
        assertEquals(true, File(folder, "user/shipped.taken").delete())
        assertEquals(6, segments({ error("asked for again") }))
    }

    @Test
    fun `nobody has no pack`() {
        assertEquals(0, segments(null))
    }

    private fun lateUs(name: String, nowUs: Long, shipped: (() -> ByteArray)?, then: (Ranker) -> Unit = {}): Long =
        Home(File(folder, name), bundle, engine, shipped, nowUs).use {
            assertEquals(3, it.ranker.rank(3, nowUs = nowUs - it.lateUs).hits.size)
            then(it.ranker)
            it.lateUs
        }

    @Test
    fun `the clock of a user with a pack is an hour after it at the first start, and at their newest event when that is later`() {
        val throughUs = Pack.read(pack, "full").through.timeUs
        val nowUs = throughUs + 10 * HOUR_US
        assertEquals(0, lateUs("early", throughUs + HOUR_US / 2, { pack }))
        assertEquals(9 * HOUR_US, lateUs("user", nowUs, { pack }) { it.observe(ItemId.of("item-01"), atUs = throughUs + 1) })
        assertEquals(9 * HOUR_US, lateUs("user", nowUs, { pack }) { it.observe(ItemId.of("item-01"), atUs = throughUs + 4 * HOUR_US) })
        assertEquals(6 * HOUR_US, lateUs("user", nowUs, { pack }))
    }

    @Test
    fun `the clock of nobody is the phone's, and no earlier than the newest event where that was set back`() {
        val nowUs = 1_700_000_000_000_000
        assertEquals(0, lateUs("nobody", nowUs, null) { it.observe(ItemId.of("item-01"), atUs = nowUs) })
        assertEquals(0, lateUs("nobody", nowUs + 1, null))
        assertEquals(-HOUR_US, lateUs("nobody", nowUs - HOUR_US, null))
    }

    @Test
    fun `a home that could not be opened leaves its folder to the next try`() {
        val broken = object : Engine by engine {
            override fun open(path: File, constants: List<Tensor>): Graph = throw BadBundle("$path: engine onnx cannot load it")
        }
        for (again in 1..2) {
            val said = assertThrows<BadBundle> { Home(File(folder, "user"), bundle, broken, null) }.message!!
            assertTrue("cannot load it" in said, said)
        }
        assertEquals(6, segments())
    }

    @Test
    fun `a home that is taken twice is open once, and until both have given it back`() {
        val opened = ArrayList<String?>()
        val homes = Homes { user ->
            opened.add(user)
            Home(File(folder, user ?: "nobody"), bundle, engine, null)
        }
        homes.take("user")
        homes.with("user") { home ->
            homes.giveBack("user")
            homes.take(null) // who is shown now, while the sync goes on
            assertThrows<BadInput> { segments() }
            home.ranker.load(pack, "the synced pack")
            assertSame(home, homes.take("user"))
            homes.giveBack("user")
        }
        assertEquals(6, segments({ error("asked for again") }), "it is not closed")
        assertEquals(listOf("user", null), opened)
        homes.giveBack(null)
    }

    @Test
    fun `work that fails is told, whatever it failed of`() {
        val told = ArrayList<String>()
        fun work(what: () -> String) = answer({ told.add("failed: $it") }, { it: String -> told.add(it) }, what)()
        work { "done" }
        work { throw BadInput("no such") }
        work { throw IOException("No space left on device") }
        assertEquals(listOf("done", "failed: no such", "failed: No space left on device; check the phone's free space"), told)
    }

    private companion object {
        const val HOUR_US = 3_600_000_000
    }
}
