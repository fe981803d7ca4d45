package pocketrank.demo

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import pocketrank.BadInput
import pocketrank.Bundle
import pocketrank.Dump
import pocketrank.Ranker
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

    @Test
    fun `work that fails is told, whatever it failed of`() {
        val told = ArrayList<String>()
        fun work(what: () -> String) = answer({ told.add("failed: $it") }, { it: String -> told.add(it) }, what)()
        work { "done" }
        work { throw BadInput("no such") }
        work { throw IOException("No space left on device") }
        assertEquals(listOf("done", "failed: no such", "failed: No space left on device; check the phone's free space"), told)
    }
}
