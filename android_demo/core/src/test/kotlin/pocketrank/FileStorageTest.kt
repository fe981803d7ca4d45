package pocketrank

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile

class FileStorageTest {
    @TempDir
    lateinit var home: File

    private fun <T> opened(use: (FileStorage) -> T): T = FileStorage(File(home, "user")).use(use)

    private val events = listOf(
        Observed(5, ItemId.of("é"), "buy", 1.5), Observed(3, ItemId.of(-7), "", 0.0), Observed(5, ItemId.of(""), "view", 1e9),
    )

    @Test
    fun `events and pack are there when the process comes back, by time and arrival`() {
        opened { storage ->
            assertNull(storage.pack)
            events.forEach(storage::add)
            storage.pack = byteArrayOf(1, 2, 3)
            storage.pack = byteArrayOf(4)
            storage.know("one", "1")
            storage.know("two", "2")
            storage.know("two", null)
        }
        opened { storage ->
            val wanted = listOf(events[1].copy(arrival = 2), events[0].copy(arrival = 1), events[2].copy(arrival = 3))
            assertEquals(wanted, storage.events)
            assertArrayEquals(byteArrayOf(4), storage.pack)
            assertEquals(listOf("1", null), listOf("one", "two").map(storage::fact))
            storage.clear()
        }
        opened { storage ->
            assertEquals(emptyList<Observed>(), storage.events)
            assertNull(storage.pack)
            assertNull(storage.fact("one"))
            storage.add(events[0])
            assertEquals(4, storage.events.single().arrival, "a number is never given twice")
        }
    }

    @Test
    fun `events before a time are dropped, but for those that came after what was acknowledged`() {
        opened { storage ->
            events.forEach(storage::add)
            storage.drop(beforeUs = 5, arrival = 1)
            assertEquals(3, storage.events.size)
            storage.drop(beforeUs = 6, arrival = 2)
            storage.add(events[0])
        }
        opened { storage -> assertEquals(listOf(3L, 4L), storage.events.map { it.arrival }) }
    }

    @Test
    fun `wherever a crash cut the log, the events before are kept and the next ones follow them`() {
        opened { storage -> events.forEach(storage::add) }
        val log = File(home, "user/events.log")
        val whole = log.readBytes()
        for (size in whole.size downTo 0) {
            log.writeBytes(whole.copyOf(size))
            val kept = opened { storage ->
                storage.events.size.also { storage.add(events[0]) }
            }
            opened { storage -> assertEquals(kept + 1, storage.events.size, "cut at $size") }
        }
        log.writeBytes(whole.also { it[it.size - 1]++ })
        assertEquals(2, opened { it.events.size })
    }

    /** A disk that is full in the middle of a record. */
    private class Disk(log: File) : RandomAccessFile(log, "rw") {
        var isFull = true
        var cuts = true

        init {
            seek(length())
        }

        override fun write(bytes: ByteArray) {
            if (!isFull) return super.write(bytes)
            super.write(bytes, 0, bytes.size / 2)
            throw IOException("No space left on device")
        }

        override fun setLength(length: Long) = if (cuts) super.setLength(length) else throw IOException("I/O error")
    }

    @Test
    fun `an event that a full disk takes half of is refused, and hides none that comes later`() {
        for (cuts in listOf(true, false)) {
            opened { storage ->
                storage.clear()
                storage.add(events[0])
                val disk = Disk(File(home, "user/events.log"))
                disk.cuts = cuts
                FileStorage::class.java.getDeclaredField("log").apply { isAccessible = true }.set(storage, disk)
                assertThrows<BadInput> { storage.add(events[1]) }
                assertEquals(1, storage.events.size)
                disk.isFull = false
                storage.add(events[2])
                storage.add(events[2])
            }
            opened { storage -> assertEquals(List(3) { 5L }, storage.events.map { it.timeUs }, "$cuts") }
            val log = File(home, "user/events.log").readBytes()
            opened { storage ->
                storage.clear()
                for (event in listOf(events[0], events[2], events[2])) storage.add(event)
            }
            assertEquals(File(home, "user/events.log").length(), log.size.toLong(), "half of it is still there")
        }
    }

    @Test
    fun `half a record in the middle hides none behind it`() {
        val log = File(home, "user/events.log")
        opened { storage -> storage.add(events[0]) }
        val one = log.readBytes()
        opened { storage -> events.drop(1).forEach(storage::add) }
        val more = log.readBytes().drop(one.size)
        for (cut in 21 until one.size) {
            log.writeBytes(one.copyOf(cut) + more)
            for (again in 0..1) opened { storage -> assertEquals(listOf(2L, 3L), storage.events.map { it.arrival }, "$cut") }
            opened { storage -> storage.add(events[0]) }
            opened { storage -> assertEquals(listOf(2L, 3L, 4L), storage.events.map { it.arrival }.sorted()) }
        }
    }

    @Test
    fun `a log of which the power left nothing but zeros, or half a head, is a new one`() {
        val log = File(home, "user/events.log")
        opened { }
        val head = log.readBytes()
        for (size in head.indices) for (zeros in listOf(0, 1, 50)) {
            log.writeBytes(head.copyOf(size) + ByteArray(zeros))
            opened { storage -> storage.add(events[0]) }
            opened { storage -> assertEquals(1, storage.events.size, "$size and $zeros") }
        }
    }

    @Test
    fun `a folder is open once, whatever is rewritten in it, until it is closed`() {
        val folder = File(home, "user")
        val said = "$folder: another storage has it open; close that one, or go on with it"
        opened { storage ->
            storage.add(events[0])
            for (again in 1..2) {
                assertEquals(said, assertThrows<BadInput> { opened { } }.message)
                assertTrue(said in inAnotherProcess(folder))
                storage.clear()
            }
            storage.add(events[1])
        }
        assertEquals("", inAnotherProcess(folder))
        opened { storage -> assertEquals(listOf(3L), storage.events.map { it.timeUs }) }
    }

    @Test
    fun `what was closed writes over nothing of who has the folder since`() {
        val closed = opened { storage -> storage.also { it.add(events[0]) } }
        opened { storage ->
            storage.add(events[1])
            storage.pack = byteArrayOf(1)
            val writing = listOf({ closed.add(events[2]) }, { closed.pack = byteArrayOf(2) }, { closed.drop(9, 9) })
            for (write in writing) assertThrows<BadInput> { write() }
        }
        opened { storage ->
            assertEquals(2, storage.events.size)
            assertArrayEquals(byteArrayOf(1), storage.pack)
        }
    }

    private fun inAnotherProcess(folder: File): String {
        val java = File(System.getProperty("java.home"), "bin/java").path
        val command = listOf(java, "-cp", System.getProperty("java.class.path"), "pocketrank.FileStorageTestKt", "$folder")
        return ProcessBuilder(command).redirectErrorStream(true).start().inputStream.use { String(it.readBytes()) }
    }

    @Test
    fun `a pack that was cut off before it got its place is gone at the next start, and when all is forgotten`() {
        val draft = File(home, "user/pack.safetensors.new").also { it.parentFile.mkdirs() }
        draft.writeText("half a pack")
        opened { storage ->
            assertFalse(draft.exists())
            draft.writeText("half a pack")
            storage.clear()
            assertFalse(draft.exists())
        }
    }

    @Test
    fun `another file in its place is refused, and left as it is`() {
        val log = File(home, "user/events.log").also { it.parentFile.mkdirs() }
        log.writeText("my diary")
        assertThrows<BadInput> { opened { } }
        assertEquals("my diary", log.readText())
        log.delete()
        opened { }
        assertThrows<BadInput> { FileStorage(log).close() }
    }
}

/** Opens a folder, as another process would. */
fun main(arguments: Array<String>) = FileStorage(File(arguments.single())).close()
